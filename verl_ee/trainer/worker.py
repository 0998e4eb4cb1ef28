"""verl's actor worker with what a supervised stage needs: its loss, its learning rate, a fresh optimizer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_ee.config import StageConfig
from verl_ee.objectives.loss import SupervisedLoss
from verl_ee.objectives.schedule import learning_rate


class EarlyExperienceWorker(ActorRolloutRefWorker):
    """The worker that mid-trains and then runs GRPO; every method of verl's own stays as it is."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def begin_stage(self, stage: StageConfig, total_steps: int) -> None:
        """Start a supervised stage: fresh optimizer state, the stage's schedule, the supervised loss.

        Args:
            stage: learning rate and schedule.
            total_steps: optimizer steps of the stage.
        """
        engine = self.actor.engine
        _forget(engine.optimizer, stage.lr)

        def factor(step: int) -> float:
            # The scheduler is stepped once more after the last step of a stage.
            return learning_rate(stage, min(step, total_steps - 1), total_steps) / stage.lr

        _use_scheduler(engine, torch.optim.lr_scheduler.LambdaLR(engine.optimizer, factor))
        self.actor.set_loss_fn(SupervisedLoss())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def hand_over(self) -> None:
        """Get ready for GRPO: fresh optimizer state, GRPO's own learning rate, schedule and loss."""
        engine = self.actor.engine
        _forget(engine.optimizer, engine.optimizer_config.lr)
        _use_scheduler(engine, engine._build_lr_scheduler(engine.optimizer))
        self.actor.set_loss_fn(self.loss_fn)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def exempt_from_rotation(self, path: str) -> None:
        """Take a saved checkpoint off the list from which verl deletes the oldest."""
        manager = self.actor.engine.checkpoint_manager
        manager.previous_saved_paths = [saved for saved in manager.previous_saved_paths if saved != path]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def training_state(self) -> dict[str, Any]:
        """Return what tells two training states apart: a hash of the local weights, moments held, learning rate."""
        engine = self.actor.engine
        sha = hashlib.sha256()
        for name, value in sorted(engine.module.state_dict().items()):
            local = value.to_local() if hasattr(value, "to_local") else value
            sha.update(name.encode())
            sha.update(local.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "weights": sha.hexdigest(),
            "parameters_with_moments": len(engine.optimizer.state),
            "lr": engine.optimizer.param_groups[0]["lr"],
        }


def _forget(optimizer: torch.optim.Optimizer, lr: float) -> None:
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = lr
        # A scheduler takes its base rate from here, if a former scheduler left one.
        group.pop("initial_lr", None)


def _use_scheduler(engine: Any, scheduler: Any) -> None:
    engine.lr_scheduler = scheduler
    engine.checkpoint_manager.lr_scheduler = scheduler
