"""Supervised stages on verl's actor workers: they are trained, saved on the way, and go on after a kill."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from verl_ee.config import StageConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import StageError
from verl_ee.experience.progress import plugin_logger, progress_bar
from verl_ee.objectives.examples import Example
from verl_ee.objectives.files.example_files import ExampleSet
from verl_ee.objectives.loss import mean_metrics
from verl_ee.objectives.schedule import batches, learning_rate
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import StageProgress
from verl_ee.trainer.actor.batch import numbers_in, sums_of, to_batch
from verl_ee.trainer.actor.micro_batches import BatchLimits
from verl_ee.trainer.checkpoints import TRACKER
from verl_ee.trainer.protocols import ActorWorkers
from verl_ee.trainer.stage_log import StageLog, trained_line

logger = plugin_logger(__name__)


class MidTraining:
    """Trains stages one after the other on an actor worker group.

    A checkpoint is written every so many steps and at the end of a stage. A stage that was interrupted goes on from its
    newest one, with the same order of examples, optimizer state, schedule and random numbers, so it ends with the
    weights that it would have had.
    """

    def __init__(
        self,
        workers: ActorWorkers,
        folder: RunFolder,
        log: StageLog,
        save_freq: int,
        limits: BatchLimits,
        pad_token: int,
    ) -> None:
        """Prepare to train.

        Args:
            workers: worker group of `EarlyExperienceWorker`.
            folder: folder of the run.
            log: log of the run.
            save_freq: steps between two checkpoints of a stage; 0 saves at its end alone.
            limits: workers and micro-batches that a batch is divided into.
            pad_token: id of the token of the padding.
        """
        self._workers, self._folder, self._log = workers, folder, log
        self._save_freq, self._limits, self._pad_token = save_freq, limits, pad_token
        self._loaded_stage: str | None = None

    def run(
        self, name: str, stage: StageConfig, examples: ExampleSet, total: int, after: str | None, force: bool
    ) -> None:
        """Train a stage to its end, from wherever an earlier job left it.

        Args:
            name: name of the stage.
            stage: its learning rate, schedule and order.
            examples: that it learns from.
            total: its optimizer steps.
            after: the stage whose policy it starts from; None: the model of the job.
            force: train it again if an earlier job trained it on other examples.

        Raises:
            StageError: if an earlier job trained it on other examples, or a checkpoint cannot be saved.
        """
        began = time.monotonic()
        begin = self._progress(name, StageProgress(0, total, examples.digest), force)
        logger.info(f"{name} begins: {total} steps on {len(examples)} examples")
        self._prepare_workers(name, stage, begin, after)
        losses: dict[str, str] = {}
        with progress_bar(total, name, "step", initial=begin.step) as bar:
            for step, batch in enumerate(batches(stage, examples, total)):
                if step < begin.step:
                    continue
                values = self._step(batch) | {"lr": learning_rate(stage, step, total)}
                self._log.log_stage(name, values)
                losses = _losses(stage, values)
                bar.set_postfix(losses, refresh=False)
                bar.update(1)
                if step + 1 == total or (self._save_freq and (step + 1) % self._save_freq == 0):
                    self._save(name, StageProgress(step + 1, total, begin.examples))
        logger.info(trained_line(name, total, losses, time.monotonic() - began))

    def _progress(self, name: str, fresh: StageProgress, force: bool) -> StageProgress:
        """Return how far an earlier job trained a stage, or `fresh`."""
        trained = self._folder.trained().get(name, fresh)
        if (trained.total, trained.examples) == (fresh.total, fresh.examples):
            return trained
        if not force:
            raise StageError(
                f"Stage {name!r} was trained for {trained.step} of {trained.total} steps on other examples than those "
                f"of this job ({fresh.total} steps). Bring back the data it began with, or add {ROOT}.resume=force to "
                "train the stage again from its beginning."
            )
        self._folder.forget(name)
        self._log.take_back(trained.step)
        return fresh

    def _prepare_workers(self, name: str, stage: StageConfig, begin: StageProgress, after: str | None) -> None:
        """Give the workers the weights, optimizer and schedule with which a stage begins or goes on."""
        if begin.step == 0 and after is not None and after != self._loaded_stage:
            # Megatron keeps the weights in full precision with the optimizer, whose moments the stage forgets.
            self._load(after, self._folder.trained()[after].step, ["model", "optimizer"])
        self._workers.begin_stage(stage, begin.total)
        if begin.step:
            self._load(name, begin.step, ["model", "optimizer", "extra"])
        self._loaded_stage = name

    def _step(self, batch: list[Example]) -> dict[str, float]:
        """Take one optimizer step, and return its metrics."""
        metrics = self._workers.update_supervised(to_batch(batch, self._limits, self._pad_token))["metrics"]
        return mean_metrics(sums_of(metrics)) | {"grad_norm": numbers_in(metrics["grad_norm"])[0]}

    def _save(self, name: str, progress: StageProgress) -> None:
        path = self._folder.checkpoint(name, progress.step)
        try:
            shutil.rmtree(path, ignore_errors=True)
            self._workers.save_stage(str(path), progress.step)
            self._folder.reach(name, progress)
        except Exception as error:  # from a worker: whatever torch raises when it cannot write, wrapped by Ray
            failure = save_failed(path, error)
            # Half a checkpoint is of no use, and may have taken the last of a disk that has to hold `error.json`.
            shutil.rmtree(path.parent, ignore_errors=True)
            raise failure from error
        for other in path.parent.parent.glob("global_step_*"):
            if other != path.parent:
                shutil.rmtree(other, ignore_errors=True)

    def _load(self, name: str, step: int, contents: list[str]) -> None:
        self._workers.load_stage(str(self._folder.checkpoint(name, step)), contents)


def save_failed(path: Path, error: BaseException, older_kept: bool = True) -> StageError:
    """Return the error of a checkpoint that could not be saved.

    Args:
        path: folder of the actor checkpoint, in that of the step.
        error: what ended the saving.
        older_kept: whether the checkpoint before it is still there.
    """
    free = shutil.disk_usage(path.parents[2] if path.parents[2].exists() else "/").free
    after = "The checkpoint before it is unharmed: free space, then repeat the command to go on from it."
    if not older_kept:
        step, tracker = path.parent.name.removeprefix("global_step_"), path.parents[1] / TRACKER
        after = (
            f"verl had removed the checkpoint before it, or emptied {tracker}. To go on from this one, free space, "
            f"remove {path.parent}/data.pt if it is cut off, write {step} into {tracker}, then repeat the command."
        )
    return StageError(f"Saving {path} failed: {last_line(error)} ({free / 2**30:.3g} GiB are free there). {after}")


def last_line(error: BaseException) -> str:
    """Return the last line of an error; for one from a Ray actor, that is the error that was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _losses(stage: StageConfig, values: Mapping[str, float]) -> dict[str, str]:
    """Return the losses of a step as text, by objective."""
    present = [objective for objective in stage.objectives if f"{objective}/loss" in values]
    return {f"{objective} loss": f"{values[f'{objective}/loss']:.3f}" for objective in present}
