"""The plugin's lines and progress bars: one prefix, a level, read back whatever stands in front."""

from __future__ import annotations

import io
import re
import sys

import pytest
from tqdm import tqdm

from verl_ee.experience import progress
from verl_ee.experience.progress import plugin_logger, progress_bar, read_plugin_line


def test_every_line_of_a_message_has_the_prefix_and_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    logger = plugin_logger("verl_ee.somewhere")
    logger.info("one")
    logger.warning("two\nlines")
    logger.debug("too fine")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "verl_ee | INFO | one\nverl_ee | WARNING | two\nverl_ee | WARNING | lines\n"


def test_asking_for_loggers_again_writes_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("verl_ee.a", "verl_ee.b", "verl_ee.a"):
        logger = plugin_logger(module)
    logger.info("once")
    assert capsys.readouterr().err == "verl_ee | INFO | once\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("verl_ee | INFO | text", ("INFO", "text")),
        ("(TaskRunnerV1 pid=12, ip=10.0.0.1) verl_ee | PROGRESS | collect:  3%", ("PROGRESS", "collect:  3%")),
        ("WARNING:2025-01-01 10:00:00,1:verl_ee | WARNING | a | b", ("WARNING", "a | b")),
        ("(TaskRunnerV1 pid=12) verl_ee is imported", None),
        ("", None),
    ],
)
def test_a_line_is_read_back(line: str, expected: tuple[str, str] | None) -> None:
    assert read_plugin_line(line) == expected


def bar_lines(error: str) -> list[str]:
    lines = [read_plugin_line(line) for line in error.splitlines()]
    assert all(line is not None and line.level == "PROGRESS" for line in lines)
    return [line.text for line in lines if line is not None]


def test_without_a_terminal_a_bar_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with progress_bar(4, "world_model", "step", initial=1) as bar:
        for _ in range(3):
            bar.set_postfix({"imitation": "0.312"}, refresh=False)
            bar.update(1)
    captured = capsys.readouterr()
    lines = bar_lines(captured.err)
    counts = [re.search(r"(\d+)/4", line)[1] for line in lines]
    assert list(dict.fromkeys(counts)) == ["1", "2", "3", "4"]
    assert lines[0].startswith("world_model:  25%")
    assert re.fullmatch(r"world_model: 100%\|.{20}\| 4/4 \[00:0\d<00:00, +[0-9.]+step/s, imitation=0.312\]", lines[-1])
    assert captured.out == ""


def test_a_fast_bar_writes_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_SECONDS", 3600.0)
    assert list(progress_bar(1000, "record", "trajectory", items=range(1000))) == list(range(1000))
    assert len(bar_lines(capsys.readouterr().err)) == 2


def test_beside_a_bar_of_verl_a_line_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, desc="Training Progress", file=io.StringIO()), progress_bar(2, "collect", "state") as bar:
        bar.update(2)
    assert {line.split(":")[0] for line in bar_lines(capsys.readouterr().err)} == {"collect"}


def test_a_disabled_bar_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2, "collect", "state", disable=True) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_a_bar_is_live(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(2, "collect", "state") as bar:
        assert isinstance(bar, tqdm)
        bar.update(2)
    written = capsys.readouterr().err
    assert "\rcollect: 100%" in written
    assert progress.PREFIX not in written
