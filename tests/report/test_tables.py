"""The report of one run: its paths first, its table last, and nothing that its files do not say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from support.report_runs import cells, ends_of, write_run

from verl_ee.errors import StageError
from verl_ee.report import report, save_plot


def test_a_report_gives_every_stage_with_its_intervals(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run")).text
    assert "collect: 120 states (2 not reached again), 840 transitions, 3210 environment steps, 12.3 s" in text
    low, high = (100 * end for end in ends_of(0.4, 100))
    assert cells(text, "imitation")[1:3] == ["12.3", f"40.0 [{low:.1f}, {high:.1f}]"]
    low, high = (100 * end for end in ends_of(0.0, 50))
    assert cells(text, "base")[3:] == [f"0.0 [{low:.1f}, {high:.1f}]", "100/50"]
    assert "optimizer steps per GRPO step: 4.00 (mean of 3 GRPO steps)" in text
    assert "cut off" not in text


def test_the_paths_come_first_and_the_table_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seed=4)
    lines = report(folder).text.splitlines()
    assert lines[:3] == [
        f"run: {folder.root}, seed 4",
        f"plot: {folder.report_plot}",
        f"summary: {folder.summary_path}",
    ]
    assert [line.split()[0] for line in lines[-5:]] == ["stage", "base", "world_model", "imitation", "grpo"]
    assert lines[-6] == ""


def test_a_report_says_what_ended_the_run_and_what_a_kill_cut_off(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "ended in stage" not in report(folder).text
    folder.write_error(StageError("no room"), "imitation")
    with folder.metrics_path.open("a") as file:
        file.write('{"stage": "grpo", "st')
    lines = report(folder).text.splitlines()
    assert "ended in stage imitation: StageError: no room" in lines
    assert "rows of metrics.jsonl that a kill cut off, left out: 1" in lines


def test_a_share_that_is_missing_is_shown_as_missing_and_the_base_comes_first(tmp_path: Path) -> None:
    episodes = {"seen": 4, "unseen": 4}
    first = {"name": "base", "seconds": 1, "success": {"seen": math.nan, "unseen": 0.5}, "episodes": episodes}
    later = {"name": "imitation", "seconds": 1, "success": {"seen": 0.5}, "episodes": episodes}
    folder = write_run(tmp_path / "run", stages=[later, first], collect=None)
    text = report(folder).text
    assert text.index("base") < text.index("imitation")
    assert cells(text, "base")[2] == "-"
    assert cells(text, "imitation")[3:] == ["-", "4/-"]
    assert "collect: none" in text
    save_plot(report(folder), tmp_path / "plot.png")


def test_shares_that_may_fall_to_nothing_are_shown_where_they_are_known(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text = report(folder).text
    assert not [word for word in ("alternatives of", "rationales:", "no action") if word in text]
    summary = json.loads(folder.summary_path.read_text())
    counts = {"possible": 200, "own": 50, "filled": 180, "responses": 400, "without_action": 300}
    summary["sets"] = {"reflection": summary["collect"] | counts, "world_model": summary["collect"]}
    summary["reflect"] = {"gates": {"accepted": 30, "length": 9, "grounded": 1}, "seconds": 1.0}
    summary["stages"][0]["no_action"] = {"seen": 0.25}
    folder.summary_path.write_text(json.dumps(summary))
    text = report(folder).text
    shares = "180 of 200 possible, 50 by the policy itself (75.0 % of 400 responses hold no action)"
    assert f"\nalternatives of reflection: {shares}\n" in text
    assert "alternatives of world_model" not in text
    assert "\nrationales: 30 of 40 accepted (rejected: length 9, grounded 1)\n" in text
    assert cells(text, "stage")[-1] == "no action %"
    assert [cells(text, name)[-1] for name in ("base", "grpo")] == ["25.0/-", "-/-"]


def test_failures_of_environments_are_shown_where_there_were_some(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    summary = json.loads(folder.summary_path.read_text())
    summary["stages"][0]["env_failed"] = {"seen": 0.0, "unseen": 0.0}
    folder.summary_path.write_text(json.dumps(summary))
    assert "env failed" not in report(folder).text
    summary["stages"][-1]["env_failed"] = {"seen": 0.0, "unseen": 0.0625}
    folder.summary_path.write_text(json.dumps(summary))
    text = report(folder).text
    assert cells(text, "stage")[-1] == "env failed %"
    assert [cells(text, name)[-1] for name in ("base", "grpo")] == ["0.0/0.0", "0.0/6.2"]


def test_the_last_row_of_a_repeated_step_counts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with folder.metrics_path.open("a") as file:
        file.write('{"stage": "grpo", "step": 3, "early_experience/optimizer_steps": 11}\n')
    assert "GRPO step: 6.00" in report(folder).text


def test_a_report_needs_neither_verl_nor_torch() -> None:
    code = "import sys, verl_ee.report; print({'verl', 'torch', 'ray', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
