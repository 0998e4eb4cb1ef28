"""Several seeds: pooled over their episodes, paired where every outcome is known, and none counted twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.report_runs import cells, ends_of, write_run

from verl_ee.errors import StoreError
from verl_ee.report import compare
from verl_ee.run.folder import RunFolder


def test_seeds_are_pooled_and_listed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(seed), seed, shift) for seed, shift in enumerate((0.0, 0.05, -0.3))]
    text = compare(folders)
    p, n = (0.6 + 0.65 + 0.3) / 3, 300
    low, high = ends_of(p, n)
    expected = ["3", "300", f"{100 * p:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]", "60.0", "65.0", "30.0"]
    assert cells(text, "grpo", "seen")[2:] == expected
    earlier = ends_of(0.4, n)
    below = p - 0.4 - math.sqrt((p - low) ** 2 + (earlier[1] - 0.4) ** 2)
    above = p - 0.4 + math.sqrt((high - p) ** 2 + (0.4 - earlier[0]) ** 2)
    ends = f"[{100 * below:+.1f}, {100 * above:+.1f}]"
    gain = cells(text, "grpo - imitation", "seen")[2:]
    assert gain == ["3", "unpaired", f"{100 * (p - 0.4):+.1f}", ends, "+20.0", "+25.0", "-10.0"]
    assert cells(text, "imitation - base", "unseen")[2:5] == ["3", "unpaired", "+30.0"]
    assert cells(text, "stage")[-3:] == ["seed 0", "seed 1", "seed 2"]


def name_outcomes(folder: RunFolder, **outcomes: list[bool]) -> RunFolder:
    """Add the outcomes of stages on `seen` to a run."""
    summary = json.loads(folder.summary_path.read_text())
    for stage in summary["stages"]:
        if stage["name"] in outcomes:
            by_task = {f"seen/{n}": success for n, success in enumerate(outcomes[stage["name"]])}
            stage["outcomes"] = {"seen": by_task}
    folder.summary_path.write_text(json.dumps(summary))
    return folder


def test_a_difference_over_the_same_tasks_is_paired(tmp_path: Path) -> None:
    # Of 100 tasks 40 succeed before and 60 after, 35 of them both times.
    before, after = [n < 40 for n in range(100)], [5 <= n < 65 for n in range(100)]
    folders = [name_outcomes(write_run(tmp_path / str(n), n), imitation=before, grpo=after) for n in range(2)]
    correlation = (70 * 70 - 50 * 10 - 100) / math.sqrt(120 * 80 * 80 * 120)
    (low, high), (earlier_low, earlier_high) = ends_of(0.6, 200), ends_of(0.4, 200)
    a, b, e, f = 0.6 - low, earlier_high - 0.4, high - 0.6, 0.4 - earlier_low
    ends = (
        0.2 - math.sqrt(a**2 - 2 * correlation * a * b + b**2),
        0.2 + math.sqrt(e**2 - 2 * correlation * e * f + f**2),
    )
    gain = cells(compare(folders), "grpo - imitation", "seen")[2:6]
    assert gain == ["2", "paired", "+20.0", f"[{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"]


@pytest.mark.parametrize("other", [[True] * 99, None], ids=["other tasks", "unknown"])
def test_a_difference_is_not_paired_unless_every_outcome_is_known(tmp_path: Path, other: list[bool] | None) -> None:
    before, after = [n < 40 for n in range(100)], [n < 60 for n in range(100)]
    folders = [write_run(tmp_path / str(seed), seed) for seed in range(2)]
    unpaired = cells(compare(folders), "grpo - imitation", "seen")
    name_outcomes(folders[0], imitation=before, grpo=after)
    name_outcomes(folders[1], imitation=before, **({"grpo": other} if other else {}))
    assert cells(compare(folders), "grpo - imitation", "seen") == unpaired


def test_a_difference_pools_only_runs_with_both_stages(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(seed), seed) for seed in range(2)]
    path = folders[1].summary_path
    summary = json.loads(path.read_text())
    summary["stages"] = summary["stages"][:3]
    path.write_text(json.dumps(summary))
    folders[1].metrics_path.unlink()
    text = compare(folders)
    assert cells(text, "grpo", "seen")[2:4] == ["1", "100"]
    assert cells(text, "grpo - imitation", "seen")[2] == "1"
    assert cells(text, "grpo - imitation", "seen")[-2:] == ["+20.0", "-"]
    assert cells(text, "imitation - base", "seen")[2] == "2"


def test_runs_of_one_seed_are_told_apart(tmp_path: Path) -> None:
    text = compare([write_run(tmp_path / name) for name in "ab"])
    assert cells(text, "stage")[-2:] == ["run 1", "run 2"]


def test_a_run_that_would_count_twice_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with pytest.raises(StoreError, match="named twice"):
        compare([folder, RunFolder(folder.files / "..")])
    with pytest.raises(StoreError, match="No run"):
        compare([])
