"""Fresh optimizers and learning rates on verl's engines, which FSDP and Megatron build, hold and save differently."""

from __future__ import annotations

from collections.abc import Callable

import torch

from verl_ee.trainer.actor.engine_protocols import Engine, MegatronEngine, MegatronSchedule
from verl_ee.trainer.actor.engines import checkpoint_manager_of, is_megatron

Rate = Callable[[int], float]
"""Learning rate of a step, counted from 0."""
MASTER_WEIGHTS = "master_param"
"""Name of the full-precision weights, which Megatron's precision-aware optimizer keeps among the moments."""


def reset_optimizer(engine: Engine) -> None:
    """Let an engine's optimizer forget all steps taken; weights and hyperparameters stay.

    Args:
        engine: initialised for training.
    """
    if not is_megatron(engine):
        engine.optimizer.state.clear()
        return
    # Zeros are what Megatron starts from. It can save and load them, while without TransformerEngine it cannot save an
    # optimizer that has no state.
    for _, state in engine.optimizer.state.items():
        for name, value in state.items():
            if name != MASTER_WEIGHTS and isinstance(value, torch.Tensor):
                value.zero_()
    for group in engine.optimizer.param_groups:
        # TransformerEngine counts steps here.
        group.pop("step", None)


def set_schedule(engine: Engine, rate: Rate) -> None:
    """Let an engine's learning rate follow `rate`; the position in it is saved and loaded with a checkpoint.

    Args:
        engine: initialised for training.
        rate: asked for one step more than is taken, because verl's engines step the schedule after the last step too.
    """
    if is_megatron(engine):
        engine.lr_scheduler = _megatron_schedule(engine, rate)
    else:
        _set_base_rate(engine.optimizer, 1.0)
        engine.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, rate)
    _save_with_checkpoints(engine)


def restore_schedule(engine: Engine) -> None:
    """Return to verl's own learning rate and schedule, at their beginning."""
    if is_megatron(engine):
        engine.lr_scheduler = engine._build_lr_scheduler()
        _save_with_checkpoints(engine, engine.optimizer_config.use_checkpoint_opt_param_scheduler)
    else:
        _set_base_rate(engine.optimizer, engine.optimizer_config.lr)
        engine.lr_scheduler = engine._build_lr_scheduler(engine.optimizer)
        _save_with_checkpoints(engine)


def _set_base_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
        # A scheduler takes its base rate from here, if a former scheduler left one.
        group.pop("initial_lr", None)


def _save_with_checkpoints(engine: Engine, load_position: bool = True) -> None:
    """Let the checkpoint manager save and load the present schedule."""
    manager = checkpoint_manager_of(engine)
    manager.lr_scheduler = engine.lr_scheduler
    # Megatron's manager loads a schedule only if told to, and verl's default is not to.
    manager.use_checkpoint_opt_param_scheduler = load_position


def _megatron_schedule(engine: MegatronEngine, rate: Rate) -> MegatronSchedule:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    class Schedule(OptimizerParamScheduler):
        """Megatron's scheduler with another rule for the learning rate."""

        def get_lr(self, param_group: dict[str, object]) -> float:
            """Return the rate of the present step, the same for every group."""
            return rate(self.num_steps)

    decay = engine.optimizer_config.weight_decay
    return Schedule(
        engine.optimizer,
        init_lr=0.0,
        max_lr=0.0,
        min_lr=0.0,
        lr_warmup_steps=0,
        lr_decay_steps=1,
        lr_decay_style="constant",
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        # Only the position of a loaded schedule counts.
        override_opt_param_scheduler=True,
    )
