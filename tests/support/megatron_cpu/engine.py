"""verl's Megatron engine on the device `cpu`, in float32."""

from __future__ import annotations

from typing import Any


def register_engine() -> None:
    """Register verl's Megatron engine for `cpu`."""
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    EngineRegistry.register("language_model", "megatron", device="cpu")(MegatronEngineWithLMHead)


def tell_no_offload() -> None:
    """Tell verl that a module on the CPU is where it belongs."""
    from verl.workers.engine.megatron import transformer_impl

    transformer_impl.get_megatron_module_device = lambda _: "accelerator"


def allow_float32() -> None:
    """Let an engine config have the dtype float32."""
    from verl.workers.config.engine import McoreEngineConfig

    stock = McoreEngineConfig.__post_init__

    def post_init(self: Any) -> None:
        dtype = self.dtype
        object.__setattr__(self, "dtype", "bfloat16")
        stock(self)
        object.__setattr__(self, "dtype", dtype)

    McoreEngineConfig.__post_init__ = post_init
