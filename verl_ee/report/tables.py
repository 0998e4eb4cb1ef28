"""The report of one run: what was collected, and a table of success after each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from verl_ee.objectives.reflection.gates import ACCEPTED
from verl_ee.report.columns import aligned
from verl_ee.report.intervals import Interval, wilson
from verl_ee.run.error import RunError
from verl_ee.run.folder import RunFolder
from verl_ee.run.metrics import OPTIMIZER_STEPS, RunMetrics, read_metrics, series
from verl_ee.run.set_totals import SetTotals
from verl_ee.run.stage_result import Share, StageResult
from verl_ee.run.summary import RationaleCounts, RunSummary, read_summary

_FIRST_SPLITS = ("seen", "unseen")


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        folder: folder of the run.
        summary: success after each stage.
        metrics: losses and rewards of each step.
        error: what ended the run, or None.
    """

    folder: RunFolder
    summary: RunSummary
    metrics: RunMetrics
    error: RunError | None

    @property
    def text(self) -> str:
        """The paths of the run, what was collected, and last a row per stage with success in percent."""
        lines = [
            f"run: {self.folder.root}, seed {self.summary.seed}",
            f"plot: {self.folder.report_plot}",
            f"summary: {self.folder.summary_path}",
        ]
        if self.error is not None:
            lines.append(f"ended in stage {self.error.stage}: {self.error.type}: {self.error.message}")
        lines += [_collected(self.summary.collect), *_alternatives(self.summary.sets)]
        lines += [*_rationales(self.summary.reflect), _optimizer_steps(self.metrics)]
        if self.metrics.cut:
            lines.append(f"rows of metrics.jsonl that a kill cut off, left out: {self.metrics.cut}")
        return "\n".join([*lines, "", _stage_table(self.summary.stages)])


def report(folder: RunFolder) -> Report:
    """Read one run.

    Raises:
        StoreError: if its summary or metrics are missing, broken, or of a newer schema.
    """
    summary, metrics = read_summary(folder.summary_path), read_metrics(folder.metrics_path)
    return Report(folder, summary, metrics, RunError.read(folder.error_path))


def splits_of(stages: Iterable[StageResult]) -> list[str]:
    """Return the splits that any stage has a share of; seen and unseen come first."""
    splits = dict.fromkeys(split for stage in stages for split in stage.shares)
    first = [split for split in _FIRST_SPLITS if split in splits]
    return first + [split for split in splits if split not in first]


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}"


def interval_text(interval: Interval, number: Callable[[float], str] = percent) -> str:
    """Return both ends of an interval, each written by `number`."""
    return f"[{number(interval.low)}, {number(interval.high)}]"


def _collected(totals: SetTotals | None) -> str:
    if totals is None:
        return "collect: none"
    return (
        f"collect: {totals.states} states ({totals.mismatches} not reached again), {totals.transitions} transitions, "
        f"{totals.env_steps} environment steps, {totals.seconds:.1f} s"
    )


def _alternatives(sets: Mapping[str, SetTotals]) -> list[str]:
    """Return a line for each set that knows how many alternatives were possible."""
    lines = []
    for name, totals in sets.items():
        counts = totals.alternatives
        if counts.possible:
            lines.append(f"alternatives of {name}: {counts.text}")
    return lines


def _rationales(counts: RationaleCounts | None) -> list[str]:
    """Return a line on how many rationales passed, and what rejected the others, if some were written."""
    if counts is None:
        return []
    rejected = [f"{gate} {count}" for gate, count in counts.gates.items() if gate != ACCEPTED]
    reasons = f" (rejected: {', '.join(rejected)})" if rejected else ""
    return [f"rationales: {counts.gates.get(ACCEPTED, 0)} of {sum(counts.gates.values())} accepted{reasons}"]


def _optimizer_steps(metrics: RunMetrics) -> str:
    _, counts = series(metrics.grpo, OPTIMIZER_STEPS)
    if not counts:
        return "optimizer steps per GRPO step: no GRPO step was logged"
    return f"optimizer steps per GRPO step: {sum(counts) / len(counts):.2f} (mean of {len(counts)} GRPO steps)"


def _stage_table(stages: Sequence[StageResult]) -> str:
    if not stages:
        return "no stage has been evaluated"
    splits = splits_of(stages)
    header = ["stage", "seconds", *(f"success {split} % [95 %]" for split in splits), f"episodes {'/'.join(splits)}"]
    rows = [_stage_row(stage, splits) for stage in stages]
    if any(stage.no_action for stage in stages):
        header.append("no action %")
        rows = [[*row, _by_split(stage.no_action, splits)] for row, stage in zip(rows, stages, strict=True)]
    if any(share > 0 for stage in stages for share in stage.env_failed.values()):
        header.append("env failed %")
        rows = [[*row, _by_split(stage.env_failed, splits)] for row, stage in zip(rows, stages, strict=True)]
    return aligned([header, *rows])


def _stage_row(stage: StageResult, splits: Sequence[str]) -> list[str]:
    shares = [stage.shares.get(split) for split in splits]
    episodes = "/".join("-" if share is None else str(share.episodes) for share in shares)
    return [stage.name, f"{stage.seconds:.1f}", *map(_success, shares), episodes]


def _by_split(shares: Mapping[str, float], splits: Sequence[str]) -> str:
    """Return the share of each split, for one column."""
    return "/".join(percent(shares[split]) if split in shares else "-" for split in splits)


def _success(share: Share | None) -> str:
    return "-" if share is None else f"{percent(share.value)} {interval_text(wilson(share))}"
