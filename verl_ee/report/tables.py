"""A run, or several seeds together, as plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.report.intervals import Interval, Share, correlation, newcombe, pooled
from verl_ee.run.metrics import RunMetrics, read_metrics, series
from verl_ee.run.summary import BASE, GRPO, RunSummary, StageResult, in_order, read_summary

OPTIMIZER_STEPS = "early_experience/optimizer_steps"
DIFFERENCES = ((GRPO, "imitation"), ("imitation", BASE))
"""Pairs of stages, the later one first."""
_SPLITS = ("seen", "unseen")


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        summary: success after each stage.
        metrics: losses and rewards of each step.
    """

    summary: RunSummary
    metrics: RunMetrics

    @property
    def text(self) -> str:
        """What was collected, a row per stage with success in percent, and the optimizer steps per step of GRPO."""
        lines = [f"run: {self.summary.folder}, seed {self.summary.seed}", _collected(self.summary), ""]
        lines += [_stages(self.summary.stages), "", _optimizer_steps(self.metrics)]
        if self.metrics.cut:
            lines.append(f"rows of metrics.jsonl that a kill cut off, left out: {self.metrics.cut}")
        return "\n".join(lines)


def report(folder: Path) -> Report:
    """Read one run.

    Args:
        folder: `trainer.default_local_dir` of the run.

    Raises:
        StoreError: if its summary or metrics are missing, broken, or of a newer schema.
    """
    return Report(read_summary(folder), read_metrics(folder))


def compare(folders: Sequence[Path]) -> str:
    """Return success and gains of several runs, pooled over their episodes, with every run's own value beside.

    A run enters a pooled share if it was evaluated there, and a pooled difference if it was evaluated at both ends.

    Args:
        folders: `trainer.default_local_dir` of each run; runs of one recipe that differ in their seed.

    Raises:
        StoreError: if no folder or one folder twice is named, or a summary is missing, broken, or of a newer schema.
    """
    if not folders:
        raise StoreError("No run to compare. Name the trainer.default_local_dir of at least one.")
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise StoreError(f"{twice} is named twice, and would count twice. Name each run once.")
    runs = [read_summary(folder) for folder in folders]
    seeds = [run.seed for run in runs]
    labels = [f"seed {seed}" if seeds.count(seed) == 1 else f"run {n}" for n, seed in enumerate(seeds, start=1)]
    lines = [f"{label}: {run.folder}, seed {run.seed}" for label, run in zip(labels, runs, strict=True)]
    lines += ["", "success, % of episodes", _pooled_shares(runs, labels)]
    lines += ["", "gain, percentage points", _pooled_differences(runs, labels)]
    lines += ["", "95 %: over the episodes of these runs (Wilson; Newcombe), not over seeds that were not run."]
    return "\n".join(lines)


def splits_of(stages: Iterable[StageResult]) -> list[str]:
    """Return the splits that any stage was evaluated on; seen and unseen come first."""
    found = dict.fromkeys(split for stage in stages for split in stage.success)
    return [split for split in _SPLITS if split in found] + [split for split in found if split not in _SPLITS]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the header, as columns: text to the left in the first, to the right else."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _collected(summary: RunSummary) -> str:
    found = summary.collected
    if found is None:
        return "collect: none"
    return (
        f"collect: {found.states} states ({found.mismatches} not reached again), {found.transitions} transitions, "
        f"{found.env_steps} environment steps, {found.seconds:.1f} s"
    )


def _stages(stages: Sequence[StageResult]) -> str:
    if not stages:
        return "no stage has been evaluated"
    splits = splits_of(stages)
    header = ["stage", "seconds", *(f"success {split} % [95 %]" for split in splits), f"episodes {'/'.join(splits)}"]
    rows = [header]
    for stage in stages:
        shares = [stage.success.get(split) for split in splits]
        cells = ["-" if share is None else f"{_percent(share.value)} {_ends(share.interval)}" for share in shares]
        episodes = "/".join("-" if share is None else str(share.episodes) for share in shares)
        rows.append([stage.name, f"{stage.seconds:.1f}", *cells, episodes])
    return aligned(rows)


def _optimizer_steps(metrics: RunMetrics) -> str:
    _, counts = series(metrics.grpo, OPTIMIZER_STEPS)
    if not counts:
        return "optimizer steps per GRPO step: no GRPO step was logged"
    return f"optimizer steps per GRPO step: {sum(counts) / len(counts):.2f} (mean of {len(counts)} GRPO steps)"


def _pooled_shares(runs: Sequence[RunSummary], labels: Sequence[str]) -> str:
    rows = [["stage", "split", "runs", "episodes", "pooled", "95 %", *labels]]
    stages = in_order(stage for run in runs for stage in run.stages)
    for name in dict.fromkeys(stage.name for stage in stages):
        for split in splits_of(stages):
            shares = [run.share(name, split) for run in runs]
            present = [share for share in shares if share is not None]
            if present:
                whole = pooled(present)
                own = ["-" if share is None else _percent(share.value) for share in shares]
                counts = [str(len(present)), str(whole.episodes)]
                rows.append([name, split, *counts, _percent(whole.value), _ends(whole.interval), *own])
    return aligned(rows)


def _pooled_differences(runs: Sequence[RunSummary], labels: Sequence[str]) -> str:
    rows = [["stages", "split", "runs", "outcomes", "pooled", "95 %", *labels]]
    for later, earlier in DIFFERENCES:
        for split in splits_of(stage for run in runs for stage in run.stages):
            shares = [_pair(run, later, earlier, split) for run in runs]
            present = [pair for pair in shares if pair is not None]
            if present:
                one, two = pooled([pair[0] for pair in present]), pooled([pair[1] for pair in present])
                own = ["-" if pair is None else _points(pair[0].value - pair[1].value) for pair in shares]
                pairs = [pair for run in runs for pair in run.pairs(later, earlier, split)]
                # Where the outcomes of some episodes are not known, none counts as paired.
                paired = len(pairs) == one.episodes == two.episodes
                ends = _ends(newcombe(one, two, correlation(pairs) if paired else 0.0), _points)
                counts = [str(len(present)), "paired" if paired else "unpaired"]
                rows.append([f"{later} - {earlier}", split, *counts, _points(one.value - two.value), ends, *own])
    return aligned(rows)


def _pair(run: RunSummary, later: str, earlier: str, split: str) -> tuple[Share, Share] | None:
    one, two = run.share(later, split), run.share(earlier, split)
    return None if one is None or two is None else (one, two)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _ends(interval: Interval, form: Callable[[float], str] = _percent) -> str:
    return f"[{form(interval.low)}, {form(interval.high)}]"
