"""The CPU as a verl platform."""

from __future__ import annotations

import resource
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry, platform_manager


def _device_module() -> types.ModuleType:
    """Return `torch.cpu` with the memory and RNG functions that verl calls on a device module (bytes throughout)."""
    module = types.ModuleType("verl_ee.trainer.cpu.device")
    for name in dir(torch.cpu):
        if not name.startswith("_"):
            setattr(module, name, getattr(torch.cpu, name))

    def peak(*_: object) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def mem_get_info(*_: object) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    extra: dict[str, Callable[..., object]] = {
        "max_memory_allocated": peak,
        "max_memory_reserved": peak,
        "memory_allocated": peak,
        "memory_reserved": peak,
        "mem_get_info": mem_get_info,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_device_name": lambda *_: "cpu",
        "current_device": lambda: torch.device("cpu"),
    }
    for name, value in extra.items():
        setattr(module, name, value)
    return module


class CpuPlatform(PlatformBase):
    """verl's platform interface on a machine without an accelerator.

    Ray counts *logical* GPUs: `ResourcePoolManager` checks only `GPU` and `NPU`, so a job declares as many as it has
    workers with `+ray_kwargs.ray_init.num_gpus=N`.
    """

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        # torch treats a bare index as an accelerator, so the device itself is handed out.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def cudart(self) -> None:
        return None


def register_platform() -> None:
    """Register the platform, and select it if verl has already settled on another one in this process."""
    PlatformRegistry.register(platform="cpu")(CpuPlatform)
    current = platform_manager._current_platform
    if current is not None and current.device_name != "cpu":
        platform_manager.set_platform(CpuPlatform())
