"""megatron.core and mbridge without CUDA: the device, its random states, its types."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

SCOPE = ("megatron.core", "mbridge")
LOADED_LATER = (
    "megatron.core.dist_checkpointing",
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "mbridge",
)
"""Imported before the redirection, which reaches only modules that are loaded."""
FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")
CPU = torch.device("cpu")


class _Cuda(types.ModuleType):
    """`torch.cuda` on a machine without CUDA."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        return CPU

    def device_count(self) -> int:
        return 1

    def synchronize(self, device: Any = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class _Torch(types.ModuleType):
    """`torch` that puts on the CPU what was meant for CUDA."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def redirect_torch() -> None:
    """Let the modules in SCOPE, and nobody else, see another `torch`."""
    for name in LOADED_LATER:
        importlib.import_module(name)
    proxy = _Torch("torch")
    proxy.cuda = _Cuda("torch.cuda")
    for name in FACTORIES:
        setattr(proxy, name, _on_cpu(getattr(torch, name)))
    for name, module in list(sys.modules.items()):
        if _in_scope(name) and getattr(module, "torch", None) is torch:
            module.torch = proxy


def use_cpu_random_state() -> None:
    """Let the tracker of tensor-parallel random states keep the CPU's."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def answer_as_cuda() -> None:
    """Let megatron.core's optimizers, and nobody else, take CPU tensors for CUDA tensors."""
    stock_type, stock_cuda = torch.Tensor.type, torch.Tensor.cuda

    def type_(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        answer = stock_type(self, *arguments, **named)
        if isinstance(answer, str) and _caller().startswith("megatron.core.optimizer"):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    def cuda(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        return self if _in_scope(_caller()) else stock_cuda(self, *arguments, **named)

    torch.Tensor.type, torch.Tensor.cuda = type_, cuda


def _in_scope(name: str) -> bool:
    return any(name == scope or name.startswith(f"{scope}.") for scope in SCOPE)


def _caller() -> str:
    """Return the module that called the function that calls this one."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*arguments: Any, **named: Any) -> torch.Tensor:
        if named.get("device") is not None and torch.device(named["device"]).type == "cuda":
            named["device"] = CPU
        return factory(*arguments, **named)

    return create
