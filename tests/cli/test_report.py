"""`verl-ee report`: one run with its plot, several seeds, and a folder that holds no run."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.report_runs import write_run

from verl_ee.cli.main import main


def test_one_run_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    assert main(["report", str(folder.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"plot: {folder.report_plot}", f"summary: {folder.summary_path}"]
    assert lines[-1].startswith("grpo ")
    assert folder.report_plot.stat().st_size > 10_000


def test_a_run_of_version_0_1_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"states": 3, "transitions": 9, "mismatches": 0, "env_steps": 30, "seconds": 1.0, "way": "fork"}
    folder = write_run(tmp_path / "run", schema=1, collect=old)
    assert main(["report", str(folder.root)]) == 0
    assert "collect: 3 states (0 not reached again), 9 transitions" in capsys.readouterr().out


def test_several_seeds_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / str(seed), seed) for seed in range(2)]
    assert main(["report", *(str(folder.root) for folder in folders)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"seed 0: {tmp_path}/0, seed 0\nseed 1: {tmp_path}/1, seed 1\n")
    assert "gain, percentage points" in shown


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"StoreError: {tmp_path}/early_experience/summary.json cannot be read")
    assert not list(tmp_path.iterdir())
