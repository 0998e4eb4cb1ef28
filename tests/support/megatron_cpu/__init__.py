"""Hurdles that keep verl's Megatron engine from running on a CPU without TransformerEngine, one function each.

With `VERL_USE_EXTERNAL_MODULES=support.megatron_cpu` and `tests` on PYTHONPATH, every process that imports verl,
Ray's workers too, clears the hurdles as soon as verl imports its Megatron engine. It stands on the CPU platform of
the plugin `verl_ee`, and serves jobs with `megatron.vanilla_mbridge=True`.

What it says about Megatron: the engine's plumbing, losses, the optimizer, sharding and checkpoints are the real ones;
attention, norms and the layer specification are this package's, so no defect of a GPU's attention shows here.

`MEGATRON_CPU_WITHOUT=<function>,...` leaves hurdles standing, to see what they are.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

from support.megatron_cpu import device, engine, layers, optimizer

from verl_ee.trainer.cpu.hurdle import Hurdle
from verl_ee.trainer.import_hooks import after_import

ENGINE = "verl.workers.engine.megatron.transformer_impl"
CONFIG = "verl.workers.config.engine"
HURDLES: dict[str, tuple[Hurdle, ...]] = {
    CONFIG: (
        Hurdle(
            engine.allow_float32,
            "verl's engine config refuses float32, in which a comparison with plain PyTorch can be tight.",
            "verl allows dtype=float32.",
            (f"{CONFIG}:McoreEngineConfig.__post_init__",),
        ),
    ),
    ENGINE: (
        Hurdle(
            device.redirect_torch,
            "megatron.core and mbridge ask torch.cuda for the current device, random states and barriers, and create "
            "tensors on 'cuda': 'Torch not compiled with CUDA enabled' as soon as the engine seeds.",
            "megatron.core takes its device from the platform.",
        ),
        Hurdle(
            device.use_cpu_random_state,
            "The tracker of tensor-parallel random states imports its CUDA functions by name, past the module `torch`.",
            "megatron.core's tracker works on any device.",
            ("megatron.core.tensor_parallel.random:_get_cuda_rng_state, _set_cuda_rng_state",),
        ),
        Hurdle(
            device.answer_as_cuda,
            "Megatron's optimizers compare Tensor.type() with 'torch.cuda.*' and copy with Tensor.cuda().",
            "megatron.core compares dtypes.",
            ("torch:Tensor.type, Tensor.cuda",),
        ),
        Hurdle(
            layers.register_bridges,
            "mbridge builds layers of TransformerEngine, on a GPU too; the local ones take neither packed sequences "
            "nor verl's padding mask nor sequence parallelism (docs/backbones.md).",
            "mbridge builds local layers where TransformerEngine is missing, and they mask as TransformerEngine does.",
            ("mbridge.core.bridge:_MODEL_REGISTRY",),
        ),
        Hurdle(
            optimizer.allocate_before_loading,
            "Without TransformerEngine, on a GPU too, a fresh distributed optimizer cannot load a checkpoint: it reads "
            "one step from state that does not exist yet (docs/backbones.md).",
            "DistributedOptimizer.state_dict allows an optimizer without state.",
            ("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.sharded_state_dict",),
        ),
        Hurdle(
            optimizer.keep_steps_apart,
            "Without TransformerEngine, on a GPU too, all parameters share one step after loading, which is 0: a "
            "resumed run silently diverges (docs/backbones.md).",
            "DistributedOptimizer restores a step per parameter.",
            (
                "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict, "
                "_set_main_param_and_optimizer_states",
            ),
        ),
        Hurdle(
            engine.register_engine,
            "verl registers its Megatron engine for the device 'cuda' alone.",
            "verl registers its Megatron engine for 'cpu'.",
        ),
        Hurdle(
            engine.tell_no_offload,
            "verl takes a module on the CPU for an offloaded one and loads it back before it saves.",
            "verl asks whether it has offloaded the module.",
            (f"{ENGINE}:get_megatron_module_device",),
        ),
    ),
}
"""By the module of verl right after whose import they are cleared."""


def _clear(hurdles: tuple[Hurdle, ...], _: ModuleType) -> None:
    standing = os.environ.get("MEGATRON_CPU_WITHOUT", "").split(",")
    for hurdle in hurdles:
        if hurdle.clear.__name__ not in standing:
            hurdle.clear()


for name, hurdles in HURDLES.items():
    after_import(name, functools.partial(_clear, hurdles))
