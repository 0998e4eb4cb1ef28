"""Fresh optimizers and schedules on an FSDP engine without workers; `test_megatron` has the other engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl_ee.trainer.actor.optimizer import reset_optimizer, restore_schedule, set_schedule


@pytest.fixture
def engine() -> Any:
    """An engine with a learning rate of 0.5 that has taken a step."""
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5)
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    return SimpleNamespace(
        engine_config=SimpleNamespace(strategy="fsdp2"),
        optimizer_config=SimpleNamespace(lr=0.5),
        optimizer=optimizer,
        lr_scheduler=None,
        checkpoint_manager=SimpleNamespace(lr_scheduler=None),
        _build_lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    )


def rates(engine: Any, steps: int) -> list[float]:
    """Return the learning rate of so many steps."""
    result = []
    for _ in range(steps):
        result.append(engine.optimizer.param_groups[0]["lr"])
        engine.optimizer.step()
        engine.lr_scheduler.step()
    return result


def test_a_reset_forgets_the_moments_and_keeps_the_weights(engine: Any) -> None:
    weights = [value.clone() for group in engine.optimizer.param_groups for value in group["params"]]
    assert engine.optimizer.state
    reset_optimizer(engine)
    assert not engine.optimizer.state
    after = [value for group in engine.optimizer.param_groups for value in group["params"]]
    assert all(torch.equal(*pair) for pair in zip(weights, after, strict=True))


def test_the_rate_follows_the_stage_and_then_verl_again(engine: Any) -> None:
    set_schedule(engine, lambda step: 0.1 * (step + 1))
    assert rates(engine, 3) == pytest.approx([0.1, 0.2, 0.3])
    set_schedule(engine, lambda step: 0.01)
    assert rates(engine, 2) == pytest.approx([0.01, 0.01])
    restore_schedule(engine)
    assert rates(engine, 2) == pytest.approx([0.5, 0.5])


def test_the_checkpoint_manager_saves_the_present_schedule(engine: Any) -> None:
    set_schedule(engine, lambda step: 0.1)
    assert engine.checkpoint_manager.lr_scheduler is engine.lr_scheduler
    restore_schedule(engine)
    assert engine.checkpoint_manager.lr_scheduler is engine.lr_scheduler
