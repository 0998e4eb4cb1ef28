"""Several seeds of one recipe, pooled: success after each stage, and the gain from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence

from verl_ee.errors import StoreError
from verl_ee.report.columns import aligned
from verl_ee.report.intervals import correlation_of, newcombe, pooled, wilson
from verl_ee.report.tables import interval_text, percent, splits_of
from verl_ee.run.folder import RunFolder
from verl_ee.run.stage_result import BASE, GRPO, in_order
from verl_ee.run.summary import RunSummary, read_summary

DIFFERENCES = ((GRPO, "imitation"), ("imitation", BASE))
"""Pairs of stages, the later one first."""


def compare(folders: Sequence[RunFolder]) -> str:
    """Return success and gains of several runs, pooled over their episodes, with every run's own value beside.

    A run enters a pooled share if it was evaluated there, and a pooled difference if it was evaluated at both ends.

    Args:
        folders: runs of one recipe that differ in their seed.

    Raises:
        StoreError: if no folder or one folder twice is named, or a summary is missing, broken, or of a newer schema.
    """
    if not folders:
        raise StoreError("No run to compare. Name the trainer.default_local_dir of at least one.")
    _check_distinct(folders)
    runs = [read_summary(folder.summary_path) for folder in folders]
    labels = _labels(runs)
    lines = [
        f"{label}: {folder.root}, seed {run.seed}" for label, folder, run in zip(labels, folders, runs, strict=True)
    ]
    lines += ["", "success, % of episodes", _share_table(runs, labels)]
    lines += ["", "gain, percentage points", _difference_table(runs, labels)]
    lines += ["", "95 %: over the episodes of these runs (Wilson; Newcombe), not over seeds that were not run."]
    return "\n".join(lines)


def _check_distinct(folders: Sequence[RunFolder]) -> None:
    roots = [folder.root.resolve() for folder in folders]
    for root in roots:
        if roots.count(root) > 1:
            raise StoreError(f"{root} is named twice, and would count twice. Name each run once.")


def _labels(runs: Sequence[RunSummary]) -> list[str]:
    """Return the seed of each run, or its number where another run has the same seed."""
    seeds = [run.seed for run in runs]
    return [f"seed {seed}" if seeds.count(seed) == 1 else f"run {n}" for n, seed in enumerate(seeds, start=1)]


def _share_table(runs: Sequence[RunSummary], labels: Sequence[str]) -> str:
    stages = in_order(stage for run in runs for stage in run.stages)
    rows = [["stage", "split", "runs", "episodes", "pooled", "95 %", *labels]]
    for name in dict.fromkeys(stage.name for stage in stages):
        for split in splits_of(stages):
            rows += _share_rows(runs, name, split)
    return aligned(rows)


def _share_rows(runs: Sequence[RunSummary], stage: str, split: str) -> list[list[str]]:
    """Return the row of a stage on a split, or none if no run was evaluated there."""
    shares = [run.share(stage, split) for run in runs]
    known = [share for share in shares if share is not None]
    if not known:
        return []
    whole = pooled(known)
    each = ["-" if share is None else percent(share.value) for share in shares]
    counts = [str(len(known)), str(whole.episodes)]
    return [[stage, split, *counts, percent(whole.value), interval_text(wilson(whole)), *each]]


def _difference_table(runs: Sequence[RunSummary], labels: Sequence[str]) -> str:
    rows = [["stages", "split", "runs", "outcomes", "pooled", "95 %", *labels]]
    for later, earlier in DIFFERENCES:
        for split in splits_of(stage for run in runs for stage in run.stages):
            rows += _difference_rows(runs, later, earlier, split)
    return aligned(rows)


def _difference_rows(runs: Sequence[RunSummary], later: str, earlier: str, split: str) -> list[list[str]]:
    """Return the row of the gain between two stages, or none if no run was evaluated at both."""
    shares_later, shares_earlier, each = [], [], []
    for run in runs:
        share_later, share_earlier = run.share(later, split), run.share(earlier, split)
        if share_later is None or share_earlier is None:
            each.append("-")
        else:
            shares_later.append(share_later)
            shares_earlier.append(share_earlier)
            each.append(_points(share_later.value - share_earlier.value))
    if not shares_later:
        return []
    pooled_later, pooled_earlier = pooled(shares_later), pooled(shares_earlier)
    pairs = [pair for run in runs for pair in run.pairs(later, earlier, split)]
    # Where the outcomes of some episodes are not known, none counts as paired.
    paired = len(pairs) == pooled_later.episodes == pooled_earlier.episodes
    interval = newcombe(pooled_later, pooled_earlier, correlation_of(pairs) if paired else 0.0)
    return [
        [
            f"{later} - {earlier}",
            split,
            str(len(shares_later)),
            "paired" if paired else "unpaired",
            _points(pooled_later.value - pooled_earlier.value),
            interval_text(interval, _points),
            *each,
        ]
    ]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
