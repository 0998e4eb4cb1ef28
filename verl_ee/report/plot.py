"""The plot of a run: losses and rewards over its steps, and success after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from verl_ee.experience.files.atomic import atomic
from verl_ee.report.intervals import wilson
from verl_ee.report.tables import Report, splits_of
from verl_ee.run.metrics import SCORE, MetricStep, RunMetrics, series
from verl_ee.run.stage_result import GRPO, StageResult

_LOSS = "/loss"
# Okabe and Ito's colours, told apart with any kind of colour vision, and line styles for print.
_LOSS_COLOURS = ("#0072B2", "#D55E00", "#CC79A7")
_REWARD_COLOUR = "#009E73"
_SPLIT_STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#CC79A7", "^"), ("#000000", "D"))
_LINES = ("-", "--", ":")


def save_plot(report: Report, path: Path) -> None:
    """Draw a run as a PNG file, which appears whole or not at all.

    Above: loss per objective (nats per token) over the optimizer steps of mid-training, then the mean score of each
    GRPO step on an axis of its own, with the stage boundaries. verl takes that mean over turns, so a long episode
    counts more than a short one. Below: success per stage (% of episodes) and split, with 95 % intervals.

    Args:
        report: report of one run.
        path: the file; its folder is made.
    """
    figure = Figure(figsize=(9.0, 8.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    _draw_steps(above, report.metrics)
    _draw_success(below, report.summary.stages)
    figure.suptitle(f"{report.folder.root.resolve().name}, seed {report.summary.seed}")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_steps(axes: Axes, metrics: RunMetrics) -> None:
    grpo_begins = metrics.mid_training[-1].step if metrics.mid_training else 0
    lines = [*_draw_losses(axes, metrics.mid_training), *_draw_rewards(axes, metrics.grpo, grpo_begins)]
    _draw_boundaries(axes, metrics, grpo_begins)
    axes.set_xlabel("step (optimizer steps of mid-training, then GRPO steps)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0.0)
    if lines:
        axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(lines), frameon=False)


def _draw_losses(axes: Axes, mid_training: Sequence[MetricStep]) -> list[Line2D]:
    names = dict.fromkeys(key for step in mid_training for key in step.values if key.endswith(_LOSS))
    lines: list[Line2D] = []
    for index, name in enumerate(names):
        steps, values = series(mid_training, name)
        label, colour, style = f"loss: {name.removesuffix(_LOSS)}", _LOSS_COLOURS[index % 3], _LINES[index % 3]
        lines += axes.plot(steps, values, label=label, color=colour, linestyle=style, marker=_marker(steps))
    return lines


def _draw_rewards(axes: Axes, grpo: Sequence[MetricStep], grpo_begins: int) -> list[Line2D]:
    """Draw the mean score on an axis of its own to the right, which begins where mid-training ends."""
    rewards = axes.twinx()
    steps, values = series(grpo, SCORE)
    if not steps:
        rewards.set_axis_off()
        return []
    rewards.set_ylim(1.05 * min(0.0, *values), 1.05 * max(0.0, *values) or 1.0)
    rewards.set_ylabel("mean score of a GRPO step,\nover its turns (reward)", color=_REWARD_COLOUR)
    positions = [grpo_begins + step for step in steps]
    return rewards.plot(positions, values, label="GRPO: mean score", color=_REWARD_COLOUR, marker=_marker(steps))


def _draw_boundaries(axes: Axes, metrics: RunMetrics, grpo_begins: int) -> None:
    """Mark where each stage begins; names stand at two heights, so that those of short stages do not meet."""
    stages = [(name, next(rows).step) for name, rows in groupby(metrics.mid_training, key=lambda step: step.stage)]
    if metrics.grpo:
        stages.append((GRPO, grpo_begins + metrics.grpo[0].step))
    for index, (name, first) in enumerate(stages):
        axes.axvline(first - 0.5, color="0.5", linewidth=1.0, linestyle=":")
        axes.annotate(
            name,
            (first - 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 12 * (index % 2)),
            textcoords="offset points",
            fontsize="small",
        )


def _draw_success(axes: Axes, stages: Sequence[StageResult]) -> None:
    splits = splits_of(stages)
    tops = [_draw_split(axes, stages, splits, index) for index in range(len(splits))]
    axes.set_xticks(range(len(stages)), [stage.name for stage in stages])
    axes.set_xlim(-0.5, max(len(stages), 1) - 0.5)
    axes.set_ylim(0.0, 1.05 * max(tops, default=0.0) or 1.0)
    axes.set_xlabel("after stage")
    axes.set_ylabel("success (% of episodes)\nbars: 95 % interval (Wilson)")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    if splits:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(splits), frameon=False)


def _draw_split(axes: Axes, stages: Sequence[StageResult], splits: Sequence[str], index: int) -> float:
    """Draw the success on one of the splits, beside that on the others, and return the highest end of an interval."""
    split = splits[index]
    shift = 0.12 * (index - (len(splits) - 1) / 2)
    positions = [position for position, stage in enumerate(stages) if split in stage.shares]
    shares = [stages[position].shares[split] for position in positions]
    intervals = [wilson(share) for share in shares]
    below = [100 * (share.value - interval.low) for share, interval in zip(shares, intervals, strict=True)]
    above = [100 * (interval.high - share.value) for share, interval in zip(shares, intervals, strict=True)]
    colour, marker = _SPLIT_STYLES[index % len(_SPLIT_STYLES)]
    bars = axes.errorbar(
        [position + shift for position in positions],
        [100 * share.value for share in shares],
        yerr=[below, above],
        label=split,
        color=colour,
        capsize=4,
    )
    bars[0].set(marker=marker, markersize=7, linestyle="none", clip_on=False, zorder=3)
    return max((100 * interval.high for interval in intervals), default=0.0)


def _marker(steps: Sequence[int]) -> str:
    # A line does not show the points that it goes through, and there is none through a single one.
    return "." if len(steps) <= 40 else ""
