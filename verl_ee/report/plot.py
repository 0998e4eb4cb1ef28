"""One picture of a run: what was optimised, and what came of it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verl_ee.experience.files.atomic import atomic
from verl_ee.report.tables import Report, splits_of
from verl_ee.run.metrics import RunMetrics, series
from verl_ee.run.summary import GRPO, StageResult

REWARD = "critic/score/mean"
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
        report: of one run.
        path: the file; its folder is made.
    """
    figure = Figure(figsize=(9.0, 8.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    _draw_steps(above, report.metrics)
    _draw_success(below, report.summary.stages)
    figure.suptitle(f"{report.summary.folder.resolve().name}, seed {report.summary.seed}")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_steps(axes: Axes, metrics: RunMetrics) -> None:
    begin = metrics.mid_training[-1].step if metrics.mid_training else 0
    rewards = axes.twinx()
    names = dict.fromkeys(key for step in metrics.mid_training for key in step.values if key.endswith(_LOSS))
    lines = []
    for index, name in enumerate(names):
        steps, values = series(metrics.mid_training, name)
        label, colour, line = f"loss: {name.removesuffix(_LOSS)}", _LOSS_COLOURS[index % 3], _LINES[index % 3]
        lines += axes.plot(steps, values, label=label, color=colour, linestyle=line, marker=_marker(steps))
    steps, values = series(metrics.grpo, REWARD)
    if steps:
        later = [begin + step for step in steps]
        lines += rewards.plot(later, values, label="GRPO: mean score", color=_REWARD_COLOUR, marker=_marker(steps))
        rewards.set_ylim(1.05 * min(0.0, *values), 1.05 * max(0.0, *values) or 1.0)
        rewards.set_ylabel("mean score of a GRPO step,\nover its turns (reward)", color=_REWARD_COLOUR)
    else:
        rewards.set_axis_off()
    _draw_boundaries(axes, metrics, begin)
    axes.set_xlabel("step (optimizer steps of mid-training, then GRPO steps)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0.0)
    if lines:
        axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(lines), frameon=False)


def _draw_boundaries(axes: Axes, metrics: RunMetrics, begin: int) -> None:
    """Mark where each stage begins; names stand at two heights, so that those of short stages do not meet."""
    stages = [(name, next(rows).step) for name, rows in groupby(metrics.mid_training, key=lambda step: step.stage)]
    if metrics.grpo:
        stages.append((GRPO, begin + metrics.grpo[0].step))
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


def _draw_success(axes: Axes, stages: tuple[StageResult, ...]) -> None:
    splits = splits_of(stages)
    top = 0.0
    for index, split in enumerate(splits):
        colour, marker = _SPLIT_STYLES[index % len(_SPLIT_STYLES)]
        shift = 0.12 * (index - (len(splits) - 1) / 2)
        shown = [
            (position + shift, stage.success[split]) for position, stage in enumerate(stages) if split in stage.success
        ]
        values = [100 * share.value for _, share in shown]
        low = [100 * (share.value - share.interval.low) for _, share in shown]
        high = [100 * (share.interval.high - share.value) for _, share in shown]
        bars = axes.errorbar([x for x, _ in shown], values, yerr=[low, high], label=split, color=colour, capsize=4)
        bars[0].set(marker=marker, markersize=7, linestyle="none", clip_on=False, zorder=3)
        top = max([top, *(value + up for value, up in zip(values, high, strict=True))])
    axes.set_xticks(range(len(stages)), [stage.name for stage in stages])
    axes.set_xlim(-0.5, max(len(stages), 1) - 0.5)
    axes.set_ylim(0.0, 1.05 * top or 1.0)
    axes.set_xlabel("after stage")
    axes.set_ylabel("success (% of episodes)\nbars: 95 % interval (Wilson)")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    if splits:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(splits), frameon=False)


def _marker(steps: list[int]) -> str:
    # A line through few points, or through one, does not show them.
    return "." if len(steps) <= 40 else ""
