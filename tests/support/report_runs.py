"""Runs as their files lie in a folder, and readers of what a report prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

from verl_ee.run.folder import RunFolder

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


def metric_rows() -> list[dict[str, Any]]:
    world_model = [{"stage": "world_model", "step": n, "world_model/loss": 3.0 / n, "lr": 1e-5} for n in range(1, 7)]
    imitation = [{"stage": "imitation", "step": n, "imitation/loss": 7.0 / n, "lr": 1e-5} for n in range(7, 9)]
    grpo = [
        {"stage": "grpo", "step": n, "critic/score/mean": 0.1 * n, "early_experience/optimizer_steps": n + 2.0}
        for n in range(1, 4)
    ]
    return world_model + imitation + grpo


def write_run(folder: Path, seed: int = 0, shift: float = 0.0, **changes: Any) -> RunFolder:
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
    summary = {"schema": 2, "seed": seed, "collect": COLLECT, "stages": stages, "checkpoints": {}, **changes}
    run = RunFolder(folder)
    run.files.mkdir(parents=True)
    run.summary_path.write_text(json.dumps(summary))
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in metric_rows()))
    return run


def cells(text: str, *first: str) -> list[str]:
    """The cells of the line that begins with these cells."""
    table = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    return next(line for line in table if tuple(line[: len(first)]) == first)
