"""What tells two training states of an actor worker apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from verl_ee.trainer.actor.engines import is_megatron, local_parameters
from verl_ee.trainer.actor.optimizer import MASTER_WEIGHTS


def training_state(actor: Any) -> dict[str, Any]:
    """Return hashes of a worker's local weights and moments, its learning rate, and its position in the schedule."""
    engine = actor.actor.engine
    states = [state for _, state in engine.optimizer.state.items()]
    moments = {f"{index} {name}": value for index, state in enumerate(states) for name, value in state.items()}
    return {
        "weights": _digest(local_parameters(engine)),
        "moments": _digest(moments),
        "parameters_with_moments": sum(any(_is_moment(*item) for item in state.items()) for state in states),
        "lr": engine.optimizer.param_groups[0]["lr"],
        "schedule": int(engine.lr_scheduler.num_steps if is_megatron(engine) else engine.lr_scheduler.last_epoch),
    }


def _is_moment(name: str, value: Any) -> bool:
    """Return whether an optimizer remembers anything in a value: weights and zeros are no memory."""
    return name != MASTER_WEIGHTS and isinstance(value, torch.Tensor) and bool(_local(value).any())


def _digest(tensors: Mapping[str, Any]) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        local = torch.as_tensor(_local(value)).detach().cpu().contiguous()
        sha.update(name.encode() + local.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _local(value: Any) -> Any:
    return value.to_local() if hasattr(value, "to_local") else value
