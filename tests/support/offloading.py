"""An FSDP engine on a CPU that behaves as one on a device whose weights are offloaded: away, they cannot be read."""

from __future__ import annotations

from typing import Any

import torch

from verl_ee.trainer.actor.engines import local_parameters

DEVICE = "pretended"


class Offloading:
    """Takes the place of verl's moving of an engine.

    Attributes:
        moves: every move of weights or moments, as (device, weights, moments).
    """

    def __init__(self, engine: Any) -> None:
        """Offload an engine that has been initialised; its weights are NaN while they are away."""
        import verl.workers.engine.base as base
        import verl.workers.engine.fsdp.transformer_impl as fsdp

        import verl_ee.trainer.actor.offload as offload

        base.get_device_name = offload.get_device_name = lambda: DEVICE
        fsdp.load_fsdp_model_to_gpu = lambda _: self._weights(DEVICE)
        fsdp.offload_fsdp_model_to_cpu = lambda _: self._weights("cpu")
        engine._is_offload_param = engine._is_offload_optimizer = True
        engine.to = self.to
        self._engine, self._kept = engine, {}
        self.moves: list[tuple[str, bool, bool]] = []
        self._weights("cpu")

    def to(self, device: str, model: bool, optimizer: bool, grad: bool) -> None:
        if not (model or optimizer):
            return
        self.moves.append((device, model, optimizer))
        if model:
            self._weights(device)

    def _weights(self, device: str) -> None:
        with torch.no_grad():
            for name, value in local_parameters(self._engine).items():
                if device == "cpu" and name not in self._kept:
                    self._kept[name] = value.detach().clone()
                    value.detach().fill_(float("nan"))
                elif device != "cpu" and name in self._kept:
                    value.detach().copy_(self._kept.pop(name))
