"""The log of a run's stages: verl's loggers, the file that reports are made from, and the line of each stage."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import SupportsFloat

from tqdm import tqdm

from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.progress import plugin_logger, progress_bar
from verl_ee.run.metrics import SCORE, MetricStep, append_step, drop_steps_after
from verl_ee.run.stage_result import GRPO, StageResult
from verl_ee.trainer.protocols import Tracking

logger = plugin_logger(__name__)
STEP_KEY = "early_experience/step"
MONOTONIC = ("wandb", "vemlp_wandb")
"""Loggers that drop a step below one that they have seen."""


class StageLog:
    """Logs mid-training under a step key of its own, and keeps verl's GRPO steps apart from it.

    verl counts GRPO from step 1, and mid-training comes before it. Most loggers keep a counter per metric, so both
    start at 1. wandb keeps one for the run: there the GRPO steps are moved behind mid-training. Metrics of
    mid-training have `early_experience/step` as their axis there; for those of GRPO charts use `training/global_step`.

    It stands in for verl's `Tracking` object in the trainer.
    """

    def __init__(self, tracking: Tracking, path: Path, mid_training_steps: int = 0, grpo_steps: int = 0) -> None:
        """Go on with a log.

        Args:
            tracking: tracking of verl.
            path: the run's metrics file; a resumed job takes later steps again, and their rows are dropped.
            mid_training_steps: steps of mid-training so far.
            grpo_steps: steps of GRPO so far.
        """
        self._tracking, self._path = tracking, path
        self._step, self._grpo_steps = mid_training_steps, grpo_steps
        self._grpo_bar: tqdm[None] | None = None
        self._grpo_began = 0.0
        self._defined: set[str] = set()
        drop_steps_after(path, mid_training_steps, grpo_steps)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tracking, name)

    def begin_grpo(self, total_steps: int) -> None:
        """Show the progress of verl's GRPO loop from now on."""
        logger.info(f"{GRPO} begins: {total_steps} steps")
        self._grpo_began = time.monotonic()
        self._grpo_bar = progress_bar(total_steps, GRPO, "step", initial=self._grpo_steps)

    def log(self, data: Mapping[str, SupportsFloat], step: int, backend: Collection[str] | None = None) -> None:
        """Log a GRPO step of verl."""
        for name, backend_logger in self._tracking.logger.items():
            if backend is None or name in backend:
                backend_logger.log(data=data, step=step + self._step if name in MONOTONIC else step)
        values = _numbers(data)
        append_step(self._path, MetricStep(GRPO, step, values))
        self._show_grpo(step, values)

    def log_stage(self, stage: str, data: Mapping[str, float]) -> None:
        """Log an optimizer step of mid-training."""
        self._step += 1
        named = {f"early_experience/{key}": value for key, value in data.items()}
        self._define(named)
        self._tracking.log({**named, STEP_KEY: self._step}, step=self._step)
        append_step(self._path, MetricStep(stage, self._step, data))

    def take_back(self, steps: int) -> None:
        """Drop the last steps of mid-training, whose stage begins again."""
        self._step -= steps
        drop_steps_after(self._path, self._step, self._grpo_steps)

    def finish(self, exit_code: int = 0) -> None:
        """End the progress of GRPO, and verl's tracking."""
        if self._grpo_bar is not None:
            self._grpo_bar.close()
        self._tracking.finish(exit_code=exit_code)

    def _define(self, metrics: Collection[str]) -> None:
        """Give metrics of mid-training their axis; those of GRPO under `early_experience/` have another."""
        new = [metric for metric in metrics if metric not in self._defined]
        if not new:
            return
        for name in MONOTONIC:
            if name in self._tracking.logger:
                self._tracking.logger[name].define_metric(STEP_KEY)
                for metric in new:
                    self._tracking.logger[name].define_metric(metric, step_metric=STEP_KEY)
        self._defined.update(new)

    def _show_grpo(self, step: int, values: Mapping[str, float]) -> None:
        bar = self._grpo_bar
        if bar is None:
            return
        score = {"score": f"{values[SCORE]:.3f}"} if SCORE in values else {}
        bar.set_postfix(score, refresh=False)
        bar.update(step - bar.n)
        if step == bar.total:
            bar.close()
            logger.info(trained_line(GRPO, step, score, time.monotonic() - self._grpo_began))


def collected_line(name: str, result: CollectionResult) -> str:
    """Return the line of a set of branches that has been collected."""
    return (
        f"collect {name}: {result.states} states, {result.branches} branches, {result.reused} reused, "
        f"{result.lost} states lost, {result.failed} actions failed; alternatives: {result.alternatives.text} "
        f"({result.cost.seconds:.0f} s)"
    )


def trained_line(stage: str, steps: int, numbers: Mapping[str, str], seconds: float) -> str:
    """Return the line of a stage that has been trained.

    Args:
        stage: its name.
        steps: all of its steps.
        numbers: numbers of the last step, as text.
        seconds: since the stage began in this job.
    """
    last_step = "".join(f", {name} {number}" for name, number in numbers.items())
    return f"{stage}: {steps} steps{last_step} ({seconds:.0f} s)"


def evaluated_line(result: StageResult, step: int | None = None) -> str:
    """Return the line of an evaluation: success, the number of episodes, and by split what is known to have gone wrong.

    Args:
        result: result of the stage.
        step: step of GRPO; None for a stage that has been evaluated at its end.
    """
    shares = [f"{split} {100 * value:.1f} % of {result.episodes[split]}" for split, value in result.success.items()]
    after = result.name if step is None else f"{result.name} step {step}"
    known = [split for split in result.success if split in result.no_action]
    actionless = [f"{split} {100 * result.no_action[split]:.1f} %" for split in known]
    failed = [f"{split} {100 * share:.1f} %" for split, share in result.env_failed.items() if share > 0]
    tail = f"; responses without an action: {', '.join(actionless)}" if actionless else ""
    tail += f"; environments that failed: {', '.join(failed)}" if failed else ""
    return f"{after}, success: {', '.join(shares)} episodes{tail}"


def _numbers(data: Mapping[str, SupportsFloat]) -> dict[str, float]:
    result = {}
    for key, value in data.items():
        try:
            result[key] = float(value)
        except (TypeError, ValueError):
            continue
    return result
