"""The tables of keys in docs/configuration.md: up to date, complete, and the rest of the page is left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.table import BEGIN, END, PAGE, main, tables

SOME_DEFAULTS = {
    "method": "**required**",
    "max_experts": "`null`",
    "evaluate": "`true`",
    "environment.id": "**required**",
    "environment.kwargs": "`{}`",
    "collect.<set>.restore": "`auto`",
    "collect.<set>.k": "`8`",
    "collect.<set>.temperatures": "`[1.0]`",
    "writers.<name>.kind": "**required**",
    "writers.<name>.endpoint.url": '`""`',
    "world_model.budget": "`full`",
    "reflection.min_accepted": "`null`",
    "stages.<name>.lr": "**required**",
    "hand_over.optimizer": "`fresh`",
}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Default and meaning by key, as the tables of a page show them."""
    found = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.*?) ?\|$", text, flags=re.MULTILINE)
    return {key: (default, meaning) for key, default, meaning in found}


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_every_key_of_the_schema_has_a_row() -> None:
    schema = EarlyExperienceConfig.model_json_schema()
    groups = {
        "environment",
        "collect",
        "writers",
        "endpoint",
        "world_model",
        "reflection",
        "stages",
        "hand_over",
        "prompt",
    }
    models = [schema, *schema["$defs"].values()]
    expected = sorted(key for model in models for key in model["properties"] if key not in groups)
    # Two groups have a key `collect` of their own, which names a set.
    assert sorted(key.rpartition(".")[2] for key in rows(tables())) == sorted([*expected, "collect", "collect"])


@pytest.mark.parametrize(("key", "default"), SOME_DEFAULTS.items(), ids=list(SOME_DEFAULTS))
def test_a_row_shows_the_default_of_the_schema(key: str, default: str) -> None:
    assert rows(tables())[key][0] == default


def test_a_row_holds_the_whole_description() -> None:
    meaning = rows(tables())["world_model.include_expert_transition"][1]
    assert meaning == "Predict what the expert's own action led to as well (paper, appendix B)."


def test_a_stale_page_is_told_and_then_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    stale = PAGE.read_text().replace("| `8` |", "| `9` |")
    page.write_text(stale)
    assert main(["--check", "--page", str(page)]) == 1
    assert "Run python -m verl_ee.config.table" in capsys.readouterr().err
    assert page.read_text() == stale
    assert main(["--page", str(page)]) == 0
    assert page.read_text() == PAGE.read_text()


@pytest.mark.parametrize("text", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}", BEGIN])
def test_a_page_without_its_marks_is_left_alone(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert main(["--page", str(page)]) == 1
    assert "page.md" in (message := capsys.readouterr().err)
    assert "<!-- keys: begin" in message
    assert page.read_text() == text


def test_a_page_that_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--page", str(tmp_path / "none.md")]) == 1
    assert "none.md" in capsys.readouterr().err
