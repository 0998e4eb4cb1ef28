"""Weights and moments that a job keeps in the host's memory, and when they are on the device.

verl brings them to the device before every step and back after it. Its copies to the host are asynchronous, and
Megatron frees the memory of what it has copied, so nobody may read or write the tensors of an engine that is away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from verl.utils.device import get_device_name, get_torch_device

from verl_ee.trainer.actor.engine_protocols import Engine

HOST = "cpu"


class Offload:
    """Moves the offloaded parts of an engine; where a job offloads nothing, it does nothing.

    Attributes:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        """Take an engine as verl leaves it: all that is offloaded is in the host's memory."""
        self.engine, self._is_loaded = engine, False

    def load(self) -> None:
        """Bring weights, gradients and moments to the device, where they stay until `release`."""
        if not self._is_loaded:
            self._move(get_device_name())
        self._is_loaded = True

    def release(self) -> None:
        """Bring back what `load` brought, and wait until it has arrived; verl may have moved a part of it by itself."""
        if self._is_loaded:
            self._move(HOST)
            get_torch_device().synchronize()
        self._is_loaded = False

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Have everything on the device for a while."""
        self.load()
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Have the weights on the device for a while."""
        if self._is_loaded or not self.engine.is_param_offload_enabled:
            yield
            return
        self.engine.to(device=get_device_name(), model=True, optimizer=False, grad=False)
        try:
            yield
        finally:
            self.engine.to(device=HOST, model=True, optimizer=False, grad=False)

    def _move(self, device: str) -> None:
        parameters, moments = self.engine.is_param_offload_enabled, self.engine.is_optimizer_offload_enabled
        if parameters or moments:
            self.engine.to(device=device, model=parameters, optimizer=moments, grad=parameters)
