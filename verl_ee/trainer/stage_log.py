"""Where the numbers of a run go: verl's loggers, and a file that reports are made from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_ee.experience.files.atomic import atomic, room_for

VERL = "verl"
"""verl shows what its own logger says, and keeps it apart from the root logger, which other libraries silence."""
STEP_KEY = "early_experience/step"
MONOTONIC = ("wandb", "vemlp_wandb")
"""Loggers that drop a step below one that they have seen."""


def stage_logger(module: str) -> logging.Logger:
    """Return the logger of a module, as a part of verl's."""
    return logging.getLogger(f"{VERL}.{module}")


class StageLog:
    """Logs mid-training under a step key of its own, and keeps verl's GRPO steps apart from it.

    verl counts GRPO from step 1, and mid-training comes before it. Most loggers keep a counter per metric, so both
    start at 1. wandb keeps one for the run: there the GRPO steps are moved behind mid-training, and charts use
    `training/global_step` or `early_experience/step` as their axis.

    It stands in for verl's `Tracking` object in the trainer.
    """

    def __init__(self, tracking: Any, path: Path, trained: int = 0, grpo: int = 0) -> None:
        """Go on with a log.

        Args:
            tracking: of verl.
            path: the run's metrics file; what it has of later steps, which are taken again, is dropped.
            trained: steps of mid-training that are done.
            grpo: steps of GRPO that are done.
        """
        self._tracking, self._path = tracking, path
        self._step = trained
        for name in MONOTONIC:
            if name in tracking.logger:
                tracking.logger[name].define_metric(STEP_KEY)
                tracking.logger[name].define_metric("early_experience/*", step_metric=STEP_KEY)
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, trained, grpo)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracking, name)

    def log(self, data: Mapping[str, Any], step: int, backend: Any = None) -> None:
        """Log a GRPO step of verl."""
        for name, logger in self._tracking.logger.items():
            if backend is None or name in backend:
                logger.log(data=data, step=step + self._step if name in MONOTONIC else step)
        self.keep({"stage": "grpo", "step": step, **_numbers(data)})

    def log_stage(self, stage: str, data: Mapping[str, float]) -> None:
        """Log an optimizer step of mid-training."""
        self._step += 1
        named = {f"early_experience/{key}": value for key, value in data.items()}
        self._tracking.log({**named, STEP_KEY: self._step}, step=self._step)
        self.keep({"stage": stage, "step": self._step, **data})

    def keep(self, row: Mapping[str, Any]) -> None:
        """Append a row to the run's metrics file."""
        with room_for(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _keep_until(path: Path, trained: int, grpo: int) -> None:
    """Drop the rows of steps that a resumed job takes again, and a last row that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= (grpo if row["stage"] == "grpo" else trained):
            kept.append(line + "\n")
    with atomic(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    result = {}
    for key, value in data.items():
        try:
            result[key] = float(value)
        except (TypeError, ValueError):
            continue
    return result
