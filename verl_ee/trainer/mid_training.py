"""Supervised stages on verl's actor workers: trained, saved on the way, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_ee.config import StageConfig
from verl_ee.config.models import ROOT
from verl_ee.errors import StageError
from verl_ee.objectives.examples import Example
from verl_ee.objectives.loss import mean_metrics
from verl_ee.objectives.schedule import batches, learning_rate
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import StageProgress
from verl_ee.trainer.actor.batch import sums_of, to_batch
from verl_ee.trainer.checkpoints import TRACKER
from verl_ee.trainer.stage_log import StageLog

BAR_SECONDS = 5.0
"""Between two updates of a progress bar: Ray prints each as a line of its own."""


class MidTraining:
    """Runs stages one after the other on an actor worker group.

    A checkpoint is written every so many steps and at the end of a stage. A stage that was interrupted goes on from its
    newest one, with the same order of examples, optimizer state, schedule and random numbers, so it ends with the
    weights that it would have had.
    """

    def __init__(
        self, group: Any, folder: RunFolder, log: StageLog, save_freq: int, row_multiple: int, pad_token_id: int
    ) -> None:
        """Prepare to train.

        Args:
            group: worker group of `EarlyExperienceWorker`.
            folder: of the run.
            log: of the run.
            save_freq: steps between two checkpoints of a stage; 0 saves at its end alone.
            row_multiple: rows of a batch are filled up to a multiple of this.
            pad_token_id: token of the padding.
        """
        self._group, self._folder, self._log = group, folder, log
        self._save_freq, self._multiple, self._pad = save_freq, row_multiple, pad_token_id
        self._holds: str | None = None

    def run(
        self, name: str, stage: StageConfig, examples: Sequence[Example], total: int, after: str | None, force: bool
    ) -> None:
        """Train a stage to its end, from wherever an earlier job left it.

        Args:
            name: of the stage.
            stage: its learning rate, schedule and order.
            examples: that it learns from.
            total: its optimizer steps.
            after: the stage whose policy it starts from; None: the model of the job.
            force: train it again if its examples are not those that it was trained on so far.

        Raises:
            StageError: if they are not, or a checkpoint cannot be saved.
        """
        done = self._done(name, StageProgress(0, total, digest_of(examples)), force)
        if done.step == 0 and after != self._holds:
            # Megatron keeps the weights in full precision with the optimizer, whose moments the stage forgets.
            self._load(str(after), self._folder.trained()[str(after)].step, ["model", "optimizer"])
        self._group.begin_stage(stage, total)
        if done.step:
            self._load(name, done.step, ["model", "optimizer", "extra"])
        self._holds = name
        with tqdm(total=total, initial=done.step, desc=name, unit="step", mininterval=BAR_SECONDS) as bar:
            for step, batch in enumerate(batches(stage, examples, total)):
                if step < done.step:
                    continue
                values = self._step(batch) | {"lr": learning_rate(stage, step, total)}
                self._log.log_stage(name, values)
                losses = {o: f"{values[f'{o}/loss']:.3f}" for o in stage.objectives if f"{o}/loss" in values}
                bar.set_postfix(losses, refresh=False)
                bar.update(1)
                if step + 1 == total or (self._save_freq and (step + 1) % self._save_freq == 0):
                    self._save(name, StageProgress(step + 1, total, done.examples))

    def _done(self, name: str, fresh: StageProgress, force: bool) -> StageProgress:
        found = self._folder.trained().get(name, fresh)
        if (found.total, found.examples) == (fresh.total, fresh.examples):
            return found
        if not force:
            raise StageError(
                f"Stage {name!r} was trained for {found.step} of {found.total} steps on other examples than those of "
                f"this job ({fresh.total} steps). Bring back the data it began with, or add {ROOT}.resume=force to "
                "train the stage again from its beginning."
            )
        return fresh

    def _step(self, batch: list[Example]) -> dict[str, float]:
        output = self._group.update_actor(to_batch(batch, self._multiple, self._pad))
        metrics = output["metrics"]
        return mean_metrics(sums_of(metrics)) | {"grad_norm": _first(metrics["grad_norm"])}

    def _save(self, name: str, progress: StageProgress) -> None:
        path = self._folder.checkpoint(name, progress.step)
        try:
            shutil.rmtree(path, ignore_errors=True)
            self._group.save_stage(str(path), progress.step)
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
        self._group.load_stage(str(self._folder.checkpoint(name, step)), contents)


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
    """Return the last line of an error: of one from a Ray actor, what was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def digest_of(examples: Sequence[Example]) -> str:
    """Return a hash of what is learned, in its order."""
    sha = hashlib.sha256()
    for item in examples:
        sha.update(f"{item.objective} {item.weight} {len(item.prompt)} {len(item.target)} ".encode())
        sha.update(array("q", item.prompt + item.target).tobytes())
        sha.update(bytes(item.learned or ()))
    return sha.hexdigest()


def _first(value: Any) -> float:
    while isinstance(value, list | tuple):
        value = value[0]
    return float(value)
