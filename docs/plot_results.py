"""Draws docs/success.png from the first table of docs/results.md: `python docs/plot_results.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
STAGES = {
    "base": "base model",
    "world_model": "after world model",
    "imitation": "after imitation",
    "grpo": "after GRPO",
}
COLORS = {"seen": "#2a6f97", "unseen": "#e09f3e"}
BAR_WIDTH = 0.38
ROW = re.compile(r"^(\w+) +(\w+) +\d+ +\d+ +([\d.]+) +\[([\d.]+), ([\d.]+)\] +([\d. ]+)$", re.MULTILINE)
"""Stage, split, pooled success, both ends of its interval, and one success per seed, all in per cent."""


@dataclass(frozen=True)
class Success:
    """One row of the table, in per cent."""

    pooled: float
    low: float
    high: float
    seeds: tuple[float, ...]


def read_table(page: str) -> dict[tuple[str, str], Success]:
    """Return the rows of the first table of the page, by stage and split."""
    table = page.split("success, % of episodes")[1].split("```")[0]
    return {
        (stage, split): Success(float(pooled), float(low), float(high), tuple(map(float, seeds.split())))
        for stage, split, pooled, low, high, seeds in ROW.findall(table)
    }


def draw(rows: dict[tuple[str, str], Success], path: Path) -> None:
    """Draw one bar per stage and split, with its interval and a dot for each seed."""
    figure, axes = plt.subplots(figsize=(7.2, 3.0), layout="constrained")
    for side, (split, color) in zip((-0.5, 0.5), COLORS.items(), strict=True):
        for position, stage in enumerate(STAGES):
            row, x = rows[stage, split], position + side * BAR_WIDTH
            axes.bar(x, row.pooled, BAR_WIDTH, color=color, label=f"{split} tasks" if position == 0 else None)
            ends = [[row.pooled - row.low], [row.high - row.pooled]]
            axes.errorbar(x, row.pooled, ends, color="black", capsize=3, linewidth=1)
            dots = [x + 0.06 * (index - 1) for index in range(len(row.seeds))]
            axes.plot(dots, row.seeds, "o", markersize=4, color="white", markeredgecolor="black", clip_on=False)
    labels = [
        f"{label}\n{rows[stage, 'seen'].pooled} | {rows[stage, 'unseen'].pooled}" for stage, label in STAGES.items()
    ]
    axes.set_xticks(range(len(STAGES)), labels)
    axes.set_ylabel("success, % of episodes")
    axes.set_ylim(0, 60)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    draw(read_table((DOCS / "results.md").read_text(encoding="utf-8")), DOCS / "success.png")
