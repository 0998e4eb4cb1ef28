"""Weights, checkpoints and random numbers of verl's engines, which FSDP and Megatron name and hold differently."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from omegaconf import DictConfig
from typing_extensions import TypeIs

from verl_ee.trainer.actor.engine_protocols import CheckpointManager, Engine, FsdpEngine, MegatronEngine
from verl_ee.trainer.actor.offload import Offload

FULL_PRECISION_BYTES = 4


def has_adapter(model: DictConfig) -> bool:
    """Return whether a LoRA adapter is trained: the engines read its rank from different keys.

    Args:
        model: `actor_rollout_ref.model`.
    """
    return bool(model.get("lora_rank") or (model.get("lora") or {}).get("rank"))


def is_megatron(engine: Engine) -> TypeIs[MegatronEngine]:
    """Return whether an engine is verl's Megatron engine."""
    return engine.engine_config.strategy == "megatron"


def local_parameters(engine: Engine) -> dict[str, torch.Tensor]:
    """Return this worker's part of every parameter, by names that an actor and its reference share.

    Args:
        engine: engine of an actor or a reference.
    """
    if not is_megatron(engine):
        return {name: local_part(value) for name, value in engine.module.named_parameters()}
    from verl.utils.megatron_utils import unwrap_model

    chunks = enumerate(unwrap_model(engine.module))
    return {f"{index}.{name}": value for index, chunk in chunks for name, value in chunk.named_parameters()}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this worker holds; FSDP2 spreads tensors over workers."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def checkpoint_manager_of(engine: Engine) -> CheckpointManager:
    """Return the checkpoint manager of an engine that trains."""
    return engine.checkpoint_mananager if is_megatron(engine) else engine.checkpoint_manager


@contextmanager
def checkpoint_contents(engine: Engine, contents: Sequence[str]) -> Iterator[None]:
    """Save and load these parts of a checkpoint, whatever the job's own checkpoints hold.

    Args:
        engine: initialised for training.
        contents: any of `model`, `optimizer` and `extra`. The schedule is in `extra` with FSDP, in `optimizer` with
            Megatron, where the optimizer also holds the full-precision weights.
    """
    manager = checkpoint_manager_of(engine)
    before = manager.checkpoint_save_contents, manager.checkpoint_load_contents
    manager.checkpoint_save_contents = manager.checkpoint_load_contents = list(contents)
    try:
        yield
    finally:
        manager.checkpoint_save_contents, manager.checkpoint_load_contents = before


def load_parts(actor: Offload, path: str, contents: Sequence[str]) -> None:
    """Load parts of an actor checkpoint into an engine that trains.

    Args:
        actor: engine of the actor; nothing of it is on the device afterwards but what verl keeps there.
        path: folder of the actor checkpoint.
        contents: as `checkpoint_contents` has them.
    """
    engine = actor.engine
    with checkpoint_contents(engine, contents):
        engine.load_checkpoint(path, del_local_after_load=False)
    # verl has brought weights and moments back, whatever was loaded before.
    actor.release()
    if is_megatron(engine) and "optimizer" not in contents:
        # The optimizer would put the full-precision weights that it still has over the loaded ones.
        with actor.loaded():
            engine.optimizer.reload_model_params()


def load_reference(reference: Offload, path: str) -> None:
    """Load the weights of an actor checkpoint into a reference.

    Args:
        reference: engine of the reference, built as the actor's.
        path: folder of the actor checkpoint.
    """
    engine = reference.engine
    if not is_megatron(engine):
        # A reference has neither optimizer nor schedule, and the actor's random numbers are not its own.
        with checkpoint_contents(engine, ["model"]):
            engine.load_checkpoint(path, del_local_after_load=False)
        return
    # A Megatron engine without an optimizer has no checkpoint manager; its weights came from such a folder.
    from verl.utils.megatron_utils import get_hf_model_checkpoint_path

    load = engine.bridge.load_weights if engine.vanilla_bridge else engine.bridge.load_hf_weights
    with reference.weights():
        load(engine.module, get_hf_model_checkpoint_path(path))


def checkpoint_bytes(engine: Engine) -> int:
    """Return about how many bytes this worker's part of an actor checkpoint takes.

    A checkpoint has the weights, and two moments of each weight that is trained. Megatron saves moments and weights in
    full precision beside the weights of the model, each once over the workers that train on different data.
    """
    return _megatron_bytes(engine) if is_megatron(engine) else _fsdp_bytes(engine)


def _fsdp_bytes(engine: FsdpEngine) -> int:
    parameters = local_parameters(engine).values()
    return sum(value.numel() * value.element_size() * (1 + 2 * value.requires_grad) for value in parameters)


def _megatron_bytes(engine: MegatronEngine) -> int:
    parameters = local_parameters(engine).values()
    size = sum(
        value.numel() * (value.element_size() + 3 * FULL_PRECISION_BYTES * value.requires_grad) for value in parameters
    )
    return int(size // engine.get_data_parallel_size())


def shows_logits(engine: Engine) -> bool:
    """Return whether an engine shows the logits to the loss.

    verl does so for top-k distillation, which it refuses beside `pad_to_length` and beside context parallelism that
    follows the lengths of the rows. Fused kernels make no logits.
    """
    config = engine.engine_config
    refusing = (getattr(config, name, False) for name in ("pad_to_length", "dynamic_context_parallel"))
    return not (config.use_fused_kernels or any(refusing))


def keep_cached_memory(engine: Engine) -> None:
    """Let Megatron's optimizer steps keep the memory that torch has cached.

    verl empties the cache before every step of a distillation, whose losses are large tensors; ours are not.
    """
    if is_megatron(engine):
        vars(engine)["optimizer_step"] = partial(_step_with_cache, engine)


def restore_optimizer_step(engine: Engine) -> None:
    """Undo `keep_cached_memory`."""
    vars(engine).pop("optimizer_step", None)


def _step_with_cache(engine: MegatronEngine) -> float:
    engine._distillation_use_topk_active = False
    return type(engine).optimizer_step(engine)


def vocabulary_group_of(engine: Engine) -> torch.distributed.ProcessGroup | None:
    """Return the process group over which an engine splits the logits of a token; None if it does not."""
    if not is_megatron(engine):
        return None
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def seed_engine(engine: Engine, seed: int, rank: int) -> None:
    """Define the state of every random number generator that an engine's checkpoints hold.

    Args:
        engine: engine of the actor.
        seed: seed of all workers.
        rank: rank of this worker; Megatron derives a worker's seeds itself, and needs the same one from all of them.
    """
    if is_megatron(engine):
        from verl.workers.engine.megatron.utils import set_random_seed

        set_random_seed(seed)
        return
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
