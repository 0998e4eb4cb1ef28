"""Fresh optimizers and learning rates on verl's engines, which FSDP and Megatron build, hold and save differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from verl_ee.trainer.actor.engines import checkpoint_manager_of, is_megatron

Rate = Callable[[int], float]
"""Learning rate of a step, counted from 0."""
MASTER_WEIGHTS = "master_param"
"""What Megatron's precision-aware optimizer keeps among the moments: the weights themselves, in full precision."""


def reset_optimizer(engine: Any) -> None:
    """Let an engine's optimizer forget all steps taken; weights and hyperparameters stay.

    Args:
        engine: verl's FSDP or Megatron engine, initialised for training.
    """
    optimizer = engine.optimizer
    if not is_megatron(engine):
        optimizer.state.clear()
        return
    # Zeros are what Megatron starts from. It can save and load them, while without TransformerEngine it cannot save an
    # optimizer that has no state.
    for _, state in optimizer.state.items():
        for name, value in state.items():
            if name != MASTER_WEIGHTS and isinstance(value, torch.Tensor):
                value.zero_()
    for group in optimizer.param_groups:
        # TransformerEngine counts steps here.
        group.pop("step", None)


def set_schedule(engine: Any, rate: Rate) -> None:
    """Let an engine's learning rate follow `rate`; the position in it is saved and loaded with a checkpoint.

    Args:
        engine: verl's FSDP or Megatron engine, initialised for training.
        rate: asked for one step more than is taken, because verl's engines step the schedule after the last step too.
    """
    if is_megatron(engine):
        _use(engine, _megatron_schedule(engine, rate), keeps_position=True)
    else:
        _set_base_rate(engine.optimizer, 1.0)
        _use(engine, torch.optim.lr_scheduler.LambdaLR(engine.optimizer, rate))


def restore_schedule(engine: Any) -> None:
    """Return to verl's own learning rate and schedule, at their beginning."""
    if is_megatron(engine):
        _use(engine, engine._build_lr_scheduler(), engine.optimizer_config.use_checkpoint_opt_param_scheduler)
    else:
        _set_base_rate(engine.optimizer, engine.optimizer_config.lr)
        _use(engine, engine._build_lr_scheduler(engine.optimizer))


def parameters_with_moments(engine: Any) -> int:
    """Return for how many of this worker's parameters the optimizer remembers anything."""
    return sum(any(_remembers(*item) for item in state.items()) for _, state in engine.optimizer.state.items())


def schedule_position(engine: Any) -> int:
    """Return how many steps an engine's schedule has taken."""
    schedule = engine.lr_scheduler
    return int(schedule.num_steps if is_megatron(engine) else schedule.last_epoch)


def _remembers(name: str, value: object) -> bool:
    if name == MASTER_WEIGHTS or not isinstance(value, torch.Tensor):
        return False
    local = value.to_local() if hasattr(value, "to_local") else value
    return bool(local.any())


def _set_base_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
        # A scheduler takes its base rate from here, if a former scheduler left one.
        group.pop("initial_lr", None)


def _use(engine: Any, schedule: Any, keeps_position: bool = True) -> None:
    manager = checkpoint_manager_of(engine)
    engine.lr_scheduler = manager.lr_scheduler = schedule
    # Megatron's manager loads a schedule only if told to, and verl's default is not to.
    manager.use_checkpoint_opt_param_scheduler = keeps_position


def _megatron_schedule(engine: Any, rate: Rate) -> Any:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    class Schedule(OptimizerParamScheduler):
        """Megatron's scheduler with another rule for the learning rate."""

        def get_lr(self, param_group: dict[str, Any]) -> float:
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
        # Of a loaded schedule only the position counts.
        override_opt_param_scheduler=True,
    )
