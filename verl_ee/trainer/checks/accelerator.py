"""The accelerator of a job: what is there, whether torch can use it, and whether the job's settings fit it."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec

import torch
from omegaconf import DictConfig, OmegaConf

from verl_ee.errors import ConfigError
from verl_ee.trainer.checks.gpu_memory import check_memory
from verl_ee.trainer.cpu import VARIABLE, active

RUNTIME_KEY = f"ray_kwargs.ray_init.runtime_env.env_vars.{VARIABLE}"
"""Key by which Ray's processes get verl's platform, also those of a Ray that was started before the job."""
ATTENTION_KEY = "actor_rollout_ref.model.override_config.attn_implementation"
FLASH = "flash_attention_2"
"""verl's default of that key."""
INSTALL_FLASH = "pip install --no-build-isolation 'flash-attn==2.8.3'"
INSTALL_TE = "pip install --no-build-isolation 'transformer-engine[core_cu13,pytorch]>=2.9,<2.12'"
"""Within the bounds of megatron-core 0.16.1's extra `dev`."""
SMI_SECONDS = 30
"""A driver that hangs is no driver."""


def usable_gpus() -> int:
    """Return how many GPUs torch can use in this process; 0 where there are none, or where they are hidden.

    Raises:
        ConfigError: if the driver lists GPUs that torch cannot use.
    """
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    listed = _listed_gpus()
    if not listed or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    raise ConfigError(
        f"nvidia-smi lists {len(listed)} GPU ({listed[0]}), which torch {torch.__version__} cannot use: {_obstacle()} "
        f"To run on the CPU all the same, `source recipes/cpu.sh`, which exports {VARIABLE}=cpu."
    )


def check_accelerator(config: DictConfig) -> None:
    """Refuse a job whose settings do not fit the machine, as far as that shows on it before Ray starts.

    Args:
        config: config of verl.

    Raises:
        ConfigError: naming the key or the package, and the fix.
    """
    _check_platform(config)
    if active() or config.trainer.device not in ("cuda", None) or not usable_gpus():
        # A head node without a GPU says nothing about the nodes that have them.
        return
    if config.actor_rollout_ref.actor.strategy == "megatron":
        _check_megatron(config.actor_rollout_ref.actor.megatron)
    else:
        _check_attention(config.actor_rollout_ref.model)
    check_memory(config, torch.cuda.get_device_properties(0).total_memory)


def machine_problems() -> list[str]:
    """Return what keeps a job with verl's defaults from the GPUs of this machine, each with its fix."""
    try:
        if active() or not usable_gpus():
            return []
        _check_attention(OmegaConf.create({}))
        if _is_installed("megatron.core"):
            _check_megatron(OmegaConf.create({"vanilla_mbridge": _is_installed("mbridge")}))
    except ConfigError as error:
        return [str(error)]
    return []


def _check_platform(config: DictConfig) -> None:
    """Refuse a job that asks for the CPU in one place and not in the others."""
    asked = {
        f"the environment variable {VARIABLE}": active(),
        RUNTIME_KEY: str(OmegaConf.select(config, RUNTIME_KEY) or "").strip().lower() == "cpu",
        "trainer.device": config.trainer.device == "cpu",
    }
    if len(set(asked.values())) == 1:
        return
    there = ", ".join(place for place, is_cpu in asked.items() if is_cpu)
    missing = ", ".join(place for place, is_cpu in asked.items() if not is_cpu)
    raise ConfigError(
        f"The job asks for the CPU in one place and not in another: 'cpu' in {there}; not in {missing}. For a job on "
        f"the CPU, export {VARIABLE}=cpu and add trainer.device=cpu +{RUNTIME_KEY}=cpu, as recipes/cpu.sh does; for "
        "one on GPUs, remove all three."
    )


def _check_attention(model: DictConfig) -> None:
    attention = OmegaConf.select(model, "override_config.attn_implementation") or FLASH
    if attention == FLASH and find_spec("flash_attn") is None:
        raise ConfigError(
            f"{ATTENTION_KEY}={FLASH!r}, which is verl's default, needs the package flash-attn. Run `{INSTALL_FLASH}`, "
            f"or add +{ATTENTION_KEY}=sdpa to use torch's own attention; with actor_rollout_ref.model."
            "use_remove_padding=False, since packed rows need a mask of the whole pack there."
        )


def _check_megatron(megatron: DictConfig) -> None:
    bridge, package = ("mbridge", "mbridge") if megatron.vanilla_mbridge else ("megatron.bridge", "megatron-bridge")
    if not _is_installed(bridge):
        other = ", or add actor_rollout_ref.actor.megatron.vanilla_mbridge=True and `pip install mbridge`"
        raise ConfigError(
            f"actor_rollout_ref.actor.megatron.vanilla_mbridge={megatron.vanilla_mbridge} converts weights with the "
            f"package {package}, which is not installed. Run `pip install {package}`"
            f"{'' if megatron.vanilla_mbridge else other}."
        )
    if not _is_installed("transformer_engine"):
        raise ConfigError(
            "actor_rollout_ref.actor.strategy='megatron' on a GPU needs TransformerEngine, whose layers the bridges "
            f"build. Run `{INSTALL_TE}`, or use model_engine=dp."
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _listed_gpus() -> list[str]:
    """Return a line for each GPU that NVIDIA's driver lists."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU ")] if not done.returncode else []


def _obstacle() -> str:
    """Return why torch cannot use a GPU that the driver lists, and what helps."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "it was built for the CPU. Install a CUDA build, as the extra `vllm` of verl_ee does (docs/gpu.md)."
    try:
        torch.cuda.init()
        reason = "it found none"
    except Exception as error:  # torch raises RuntimeError, AssertionError and others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{reason} (built for CUDA {torch.version.cuda}). Update the driver, or install a torch for an older CUDA."
