"""Reports: intervals against their defining equations, files as runs leave them, broken ones, and the plot."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from verl_ee.errors import StoreError
from verl_ee.experience.expert_files import load_experts
from verl_ee.report import compare, report, save_plot
from verl_ee.report.intervals import Share, correlation, newcombe, pooled, wilson

Z = NormalDist().inv_cdf(0.975)
SUCCESS = {"base": (0.02, 0.0), "world_model": (0.04, 0.03), "imitation": (0.4, 0.3), "grpo": (0.6, 0.45)}
COLLECT = {"states": 120, "transitions": 840, "branches": 960, "mismatches": 2, "env_steps": 3210, "seconds": 12.34}


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Find the zero of a function that changes its sign between low and high."""
    rising = function(high) > 0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if (function(middle) > 0) == rising else (middle, high)
    return (low + high) / 2


def ends_of(p: float, n: int) -> tuple[float, float]:
    """The shares t at which p is just Z standard errors of t away: what a score interval is."""

    def beyond(t: float) -> float:
        return (p - t) ** 2 - Z**2 * t * (1 - t) / n

    low = 0.0 if p == 0 else bisect(beyond, 0.0, p)
    return low, 1.0 if p == 1 else bisect(beyond, p, 1.0)


def rows() -> list[dict[str, Any]]:
    world_model = [{"stage": "world_model", "step": n, "world_model/loss": 3.0 / n, "lr": 1e-5} for n in range(1, 7)]
    imitation = [{"stage": "imitation", "step": n, "imitation/loss": 7.0 / n, "lr": 1e-5} for n in range(7, 9)]
    grpo = [
        {"stage": "grpo", "step": n, "critic/score/mean": 0.1 * n, "early_experience/optimizer_steps": n + 2.0}
        for n in range(1, 4)
    ]
    return world_model + imitation + grpo


def write_run(folder: Path, seed: int = 0, shift: float = 0.0, **changes: Any) -> Path:
    """Write a run; its GRPO success is moved by `shift`."""
    stages = [
        {
            "name": name,
            "seconds": 12.3,
            "success": {"seen": seen + shift * (name == "grpo"), "unseen": unseen},
            "episodes": {"seen": 100, "unseen": 50},
        }
        for name, (seen, unseen) in SUCCESS.items()
    ]
    summary = {"schema": 1, "seed": seed, "collect": COLLECT, "stages": stages, "checkpoints": {}, **changes}
    own = folder / "early_experience"
    own.mkdir(parents=True)
    (own / "summary.json").write_text(json.dumps(summary))
    (own / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return folder


def cells(text: str, *first: str) -> list[str]:
    """The cells of the line that begins with these cells."""
    table = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    return next(line for line in table if tuple(line[: len(first)]) == first)


@pytest.mark.parametrize(("successes", "n"), [(0, 100), (1, 100), (34, 100), (150, 300), (300, 300), (1, 1), (7, 9)])
def test_wilsons_interval_solves_its_equation(successes: int, n: int) -> None:
    interval = wilson(Share(successes / n, n))
    assert (interval.low, interval.high) == pytest.approx(ends_of(successes / n, n), abs=1e-9)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


def test_newcombes_interval_matches_the_published_one() -> None:
    # Newcombe 1998, table II, case (a) 56/70 - 48/80, method 10.
    interval = newcombe(Share(56 / 70, 70), Share(48 / 80, 80))
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_newcombes_interval_is_made_from_both_score_intervals() -> None:
    one, two = ends_of(0.6, 300), ends_of(0.0, 200)
    interval = newcombe(Share(0.6, 300), Share(0.0, 200))
    assert interval.low == pytest.approx(0.6 - math.sqrt((0.6 - one[0]) ** 2 + two[1] ** 2), abs=1e-9)
    assert interval.high == pytest.approx(0.6 + (one[1] - 0.6), abs=1e-9)


def table(*counts: int) -> list[tuple[bool, bool]]:
    """Pairs that succeeded in both, in the first alone, in the second alone, in neither."""
    cells = ((True, True), (True, False), (False, True), (False, False))
    return [pair for pair, count in zip(cells, counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33: airway hyper-responsiveness.
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # Altman, Machin, Bryant, Gardner 2000, Statistics with Confidence, table 6.2.
        ((14, 5, 0, 22), (0.011, 0.226)),
    ],
)
def test_the_paired_interval_matches_published_ones(counts: tuple[int, ...], published: tuple[float, float]) -> None:
    pairs = table(*counts)
    first, second = (Share(sum(pair[side] for pair in pairs) / len(pairs), len(pairs)) for side in (0, 1))
    interval = newcombe(first, second, correlation(pairs))
    assert (interval.low, interval.high) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(
    ("counts", "expected"),
    # Uncorrected they would be 1, -1 and 500/sqrt(50 50 70 30); where one side never changes there is none.
    [
        ((50, 0, 0, 50), 0.98),
        ((0, 50, 50, 0), -1.0),
        ((40, 10, 30, 20), 450 / math.sqrt(50 * 50 * 70 * 30)),
        ((5, 0, 5, 0), 0.0),
    ],
)
def test_the_correlation_of_paired_outcomes(counts: tuple[int, ...], expected: float) -> None:
    assert correlation(table(*counts)) == pytest.approx(expected)


def test_pooling_counts_episodes() -> None:
    whole = pooled([Share(0.5, 100), Share(0.2, 300)])
    assert (whole.value, whole.episodes) == (pytest.approx(0.275), 400)
    assert pooled([Share(1.0, 3), Share(1.0, 7)]) == Share(1.0, 10)


def test_a_report_gives_every_stage_with_its_intervals(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run")).text
    assert "collect: 120 states (2 not reached again), 840 transitions, 3210 environment steps, 12.3 s" in text
    low, high = (100 * end for end in ends_of(0.4, 100))
    assert cells(text, "imitation")[1:3] == ["12.3", f"40.0 [{low:.1f}, {high:.1f}]"]
    low, high = (100 * end for end in ends_of(0.0, 50))
    assert cells(text, "base")[3:] == [f"0.0 [{low:.1f}, {high:.1f}]", "100/50"]
    assert "optimizer steps per GRPO step: 4.00 (mean of 3 GRPO steps)" in text
    assert "cut off" not in text


def test_a_share_that_is_missing_is_shown_as_missing_and_the_base_comes_first(tmp_path: Path) -> None:
    played = {"seen": 4, "unseen": 4}
    first = {"name": "base", "seconds": 1, "success": {"seen": math.nan, "unseen": 0.5}, "episodes": played}
    later = {"name": "imitation", "seconds": 1, "success": {"seen": 0.5}, "episodes": played}
    folder = write_run(tmp_path / "run", stages=[later, first], collect=None)
    text = report(folder).text
    assert text.index("base") < text.index("imitation")
    assert cells(text, "base")[2] == "-"
    assert cells(text, "imitation")[3:] == ["-", "4/-"]
    assert "collect: none" in text
    save_plot(report(folder), tmp_path / "plot.png")


def test_the_last_row_of_a_repeated_step_counts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "early_experience" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "imitation", "step": 7, "imitation/loss": 0.5}\n')
        file.write('{"stage": "grpo", "step": 3, "early_experience/optimizer_steps": 11}\n')
    metrics = report(folder).metrics
    assert [step.step for step in metrics.mid_training] == list(range(1, 9))
    assert metrics.mid_training[6].values == {"imitation/loss": 0.5}
    assert "GRPO step: 6.00" in report(folder).text


@pytest.mark.parametrize("cut", range(1, len('{"stage": "grpo", "step": 4}')))
def test_a_row_cut_off_by_a_kill_is_counted_and_left_out(tmp_path: Path, cut: int) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "early_experience" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"stage": "grpo", "step": 4}'[:cut])
    metrics = report(folder).metrics
    assert (metrics.cut, len(metrics.grpo)) == (1, 3)
    with path.open("a") as file:
        file.write('{"stage": "grpo", "step": 5}\n')
    metrics = report(folder).metrics
    assert (metrics.cut, [step.step for step in metrics.grpo]) == (1, [1, 2, 3, 5])
    assert report(folder).text.endswith("left out: 1")


@pytest.mark.parametrize("line", ["{", '{"step": 1}', '["stage"]', '{"stage": "grpo", "step": "x"}', "\x00\x00"])
def test_a_line_that_no_kill_explains_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "early_experience" / "metrics.jsonl"
    path.write_text(json.dumps(rows()[0]) + f"\n{line}\n" + json.dumps(rows()[1]) + "\n")
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line 2: "):
        report(folder)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "early_experience" / name).unlink()
    with pytest.raises(StoreError, match=rf"{name} cannot be read .*trainer\.default_local_dir"):
        report(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": "one"}',
        '{"schema": 1}',
        '{"schema": 1, "seed": 0, "collect": {}, "stages": []}',
    ],
)
def test_a_broken_summary_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "early_experience" / "summary.json").write_text(content)
    with pytest.raises(StoreError, match=r"summary\.json is not a summary of a run"):
        report(folder)


@pytest.mark.parametrize(("share", "episodes"), [(1.01, 10), (-0.1, 10), (0.5, 0)])
def test_an_impossible_share_is_refused(tmp_path: Path, share: float, episodes: int) -> None:
    stage = {"name": "base", "seconds": 1, "success": {"seen": share}, "episodes": {"seen": episodes}}
    with pytest.raises(StoreError, match=r"between 0 and 1|at least one episode"):
        report(write_run(tmp_path / "run", stages=[stage]))


def test_a_newer_summary_asks_for_an_update(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"schema 2; this verl_ee reads up to 1\. Update"):
        report(write_run(tmp_path / "run", schema=2))


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


def name_outcomes(folder: Path, **outcomes: list[bool]) -> Path:
    """Add the outcomes of stages on `seen` to a run."""
    path = folder / "early_experience" / "summary.json"
    summary = json.loads(path.read_text())
    for stage in summary["stages"]:
        if stage["name"] in outcomes:
            found = outcomes[stage["name"]]
            stage["outcomes"] = {"seen": {f"seen/{n}": success for n, success in enumerate(found)}}
    path.write_text(json.dumps(summary))
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
    path = folders[1] / "early_experience" / "summary.json"
    summary = json.loads(path.read_text())
    summary["stages"] = summary["stages"][:3]
    path.write_text(json.dumps(summary))
    (folders[1] / "early_experience" / "metrics.jsonl").unlink()
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
        compare([folder, folder / "early_experience" / ".."])
    with pytest.raises(StoreError, match="No run"):
        compare([])


def test_the_plot_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "new" / "plot.png"
    save_plot(report(write_run(tmp_path / "run")), path)
    picture = imread(path)
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.05
    assert [item.name for item in path.parent.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("kept", ["world_model", "grpo", ""])
def test_the_plot_of_an_unfinished_run_is_drawn(tmp_path: Path, kept: str) -> None:
    folder = write_run(tmp_path / "run", stages=[])
    lines = [json.dumps(row) + "\n" for row in rows() if row["stage"] == kept]
    (folder / "early_experience" / "metrics.jsonl").write_text("".join(lines))
    result = report(folder)
    assert "no stage has been evaluated" in result.text
    save_plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_report_needs_neither_verl_nor_torch() -> None:
    code = "import sys, verl_ee.report; print({'verl', 'torch', 'ray', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


def test_the_example_of_the_data_page_is_an_expert_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.split("## Expert file")[1]
    example = re.findall(r"```json\n(.*?)```", section, flags=re.DOTALL)[0]
    path = tmp_path / "experts.jsonl"
    path.write_text(json.dumps(json.loads(example)) + "\n")
    (trajectory,) = load_experts(path, "verl_ee/Household-v0", {"size": "small"}).trajectories
    assert trajectory.steps[0].action in (trajectory.steps[0].admissible_actions or ())
