"""The least memory that training takes on each GPU, against what the card has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from verl_ee.errors import ConfigError
from verl_ee.trainer.actor.engines import has_adapter

ADAM_MOMENTS = 2
"""Numbers that Adam keeps per weight."""
HALF, FULL = 2, 4
"""Bytes of a number in bfloat16 and in float32."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each GPU that no setting of batches can save: activations and unsharded layers come on top.

    Attributes:
        weights: bytes of the weights, full-precision copies included.
        gradients: bytes of the gradients.
        moments: bytes of the optimizer's moments.
    """

    weights: float
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        """Bytes of all three."""
        return self.weights + self.gradients + self.moments

    def __str__(self) -> str:
        return (
            f"{_gib(self.total)} (weights {_gib(self.weights)}, gradients {_gib(self.gradients)}, "
            f"moments {_gib(self.moments)})"
        )


def check_memory(config: DictConfig, card: int) -> None:
    """Refuse a job whose training cannot fit on its GPUs, whatever its batches are.

    Args:
        config: config of verl. It is not checked where the sum is another: a model that is no local folder, or needs
            code of its own; experts in parallel; an optimizer that is not torch's AdamW, or has settings of its own.
        card: bytes of one GPU.

    Raises:
        ConfigError: with what is needed, what there is, and the settings that would fit.
    """
    if not _is_plain(config.actor_rollout_ref.actor):
        return
    count = parameter_count(config.actor_rollout_ref.model.path)
    if count is None:
        return
    memory, rollout = training_memory(config, count), config.actor_rollout_ref.rollout
    taken = 0.0 if rollout.free_cache_engine else float(rollout.gpu_memory_utilization) * card
    if memory.total <= card - taken:
        return
    server = f", of which rollout servers that do not sleep (free_cache_engine=False) take {_gib(taken)}"
    raise ConfigError(
        f"Training {count / 1e9:.3g}B parameters needs at least {memory} on each GPU, and a card here has "
        f"{_gib(card)}{server if taken else ''}. {_ways_out(config, count, card - taken)}"
    )


def training_memory(config: DictConfig, count: int) -> TrainingMemory:
    """Return what an engine of verl holds on each GPU while it trains a number of parameters.

    FSDP shards weights, gradients and two moments of Adam, all in the dtype of the weights. Megatron splits bfloat16
    weights and float32 gradients over tensor and pipeline ranks, and float32 weights and moments over the data-parallel
    ranks besides (arXiv 1910.02054, section 3, for what each is).
    """
    actor, gpus = config.actor_rollout_ref.actor, int(config.trainer.n_gpus_per_node * config.trainer.nnodes)
    trained = 0 if has_adapter(config.actor_rollout_ref.model) else count
    if actor.strategy == "megatron":
        split = actor.megatron.tensor_model_parallel_size * actor.megatron.pipeline_model_parallel_size
        shards = max(1, gpus // split) if actor.megatron.use_distributed_optimizer else 1
        full = FULL * trained / split / shards
        return TrainingMemory(HALF * count / split + full, FULL * trained / split, ADAM_MOMENTS * full)
    engine = actor.fsdp_config
    if actor.strategy == "fsdp2" and engine.offload_policy:
        return TrainingMemory(0.0, 0.0, 0.0)
    shards = engine.fsdp_size if engine.fsdp_size > 0 else gpus
    size = HALF if str(engine.get("model_dtype") or "fp32") in ("bf16", "bfloat16", "fp16", "float16") else FULL
    return TrainingMemory(size * count / shards, size * trained / shards, ADAM_MOMENTS * size * trained / shards)


def parameter_count(path: str) -> int | None:
    """Return the number of parameters of a local model folder, or None if that cannot be told without its code."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").exists():
        return None
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # Left unsaid, transformers asks on the terminal whether it may run the folder's code.
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # an architecture that transformers does not have; verl will say what is wrong with it
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _is_plain(actor: DictConfig) -> bool:
    """Return whether every parameter is divided alike, and has AdamW's two moments on the device."""
    if actor.strategy == "megatron":
        return actor.megatron.expert_model_parallel_size == 1 and not actor.optim.get("override_optimizer_config")
    return actor.optim.get("optimizer") == "AdamW" and actor.optim.get("optimizer_impl") == "torch.optim"


def _ways_out(config: DictConfig, count: int, room: float) -> str:
    """Return the settings with which the weights, gradients and moments would fit."""
    strategy, actor = config.actor_rollout_ref.actor.strategy, "actor_rollout_ref.actor"
    reference = "actor_rollout_ref.ref.fsdp_config.model_dtype"
    settings: list[dict[str, str | bool | int]] = []
    if strategy == "fsdp2":
        settings.append({f"{actor}.fsdp_config.offload_policy": True})
    if strategy != "megatron":
        # A reference of another dtype is refused.
        settings.append({f"{actor}.fsdp_config.model_dtype": "bf16", reference: "bf16"})
        settings.append({"actor_rollout_ref.model.lora_rank": 32})
    fitting = []
    for values in settings:
        changed = config.copy()
        for key, value in values.items():
            OmegaConf.update(changed, key, value, force_add=True)
        if training_memory(changed, count).total <= room:
            fitting.append(" ".join(f"++{key}={value}" for key, value in values.items()))
    return f"Any of these would do: {'; '.join([*fitting, 'more GPUs'])}."


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
