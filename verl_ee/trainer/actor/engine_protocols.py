"""Types for verl's FSDP and Megatron engines, as far as the actor worker uses them: verl itself has none."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Protocol, TypeAlias

import torch

State: TypeAlias = MutableMapping[str, object]
"""Moments and counters that an optimizer keeps of one parameter, by name."""


class EngineConfig(Protocol):
    """Config of an engine.

    Attributes:
        strategy: `fsdp`, `fsdp2` or `megatron`.
        seed: seed of the random number generators.
        use_fused_kernels: whether log-probabilities are computed without logits.
    """

    strategy: str
    seed: int
    use_fused_kernels: bool


class OptimizerConfig(Protocol):
    """Config of an optimizer.

    Attributes:
        lr: peak learning rate.
        weight_decay: factor of the weights.
        use_checkpoint_opt_param_scheduler: whether Megatron loads a saved schedule.
    """

    lr: float
    weight_decay: float
    use_checkpoint_opt_param_scheduler: bool


class CheckpointManager(Protocol):
    """Saves and loads the checkpoints of an engine.

    Attributes:
        checkpoint_save_contents: parts that are saved, of `model`, `optimizer` and `extra`.
        checkpoint_load_contents: parts that are loaded.
        previous_saved_paths: folders from which verl deletes the oldest.
        lr_scheduler: schedule that is saved and loaded.
        use_checkpoint_opt_param_scheduler: whether a saved schedule is loaded; Megatron's manager alone reads it.
    """

    checkpoint_save_contents: list[str]
    checkpoint_load_contents: list[str]
    previous_saved_paths: list[str]
    lr_scheduler: object
    use_checkpoint_opt_param_scheduler: bool


class MegatronStates(Protocol):
    """Optimizer states of every parameter; Megatron chains several dictionaries behind it."""

    def items(self) -> Iterable[tuple[object, State]]:
        """Return each parameter with its state."""


class MegatronOptimizer(Protocol):
    """Optimizer of the Megatron engine.

    Attributes:
        state: moments of every parameter.
        param_groups: hyperparameters of each group.
    """

    state: MegatronStates
    param_groups: list[dict[str, object]]

    def reload_model_params(self) -> None:
        """Copy the weights of the model into the full-precision weights."""


class MegatronSchedule(Protocol):
    """Learning rate schedule of the Megatron engine.

    Attributes:
        num_steps: taken so far.
    """

    num_steps: int


class MegatronBridge(Protocol):
    """Converter between Megatron's weights and Hugging Face's; each of the two kinds has one of the methods."""

    def load_weights(self, models: list[torch.nn.Module], path: str, /) -> object:
        """Load a Hugging Face folder, with mbridge."""

    def load_hf_weights(self, models: list[torch.nn.Module], path: str, /) -> object:
        """Load a Hugging Face folder, with Megatron-Bridge."""


class FsdpEngine(Protocol):
    """verl's FSDP or FSDP2 engine; one of a reference has no optimizer and no schedule.

    Attributes:
        module: the model.
        lr_scheduler: torch's.
        is_param_offload_enabled: whether weights and gradients are in the host's memory between steps.
        is_optimizer_offload_enabled: whether moments are.
    """

    engine_config: EngineConfig
    optimizer_config: OptimizerConfig
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    checkpoint_manager: CheckpointManager
    is_param_offload_enabled: bool
    is_optimizer_offload_enabled: bool

    def to(self, device: str, model: bool, optimizer: bool, grad: bool) -> None:
        """Move parts of the engine."""

    def load_checkpoint(self, local_path: str, *, del_local_after_load: bool) -> None:
        """Load the parts that the checkpoint manager names."""

    def _build_lr_scheduler(self, optimizer: torch.optim.Optimizer, /) -> torch.optim.lr_scheduler.LRScheduler: ...


class MegatronEngine(Protocol):
    """verl's Megatron engine; one of a reference has no optimizer, schedule and checkpoint manager.

    Attributes:
        module: parts of the model that this worker holds.
        checkpoint_mananager: its checkpoint manager, misspelt by verl.
        bridge: converter of its weights.
        vanilla_bridge: whether that is mbridge's.
        is_param_offload_enabled: whether weights and gradients are in the host's memory between steps.
        is_optimizer_offload_enabled: whether moments are.
    """

    engine_config: EngineConfig
    optimizer_config: OptimizerConfig
    module: list[torch.nn.Module]
    optimizer: MegatronOptimizer
    lr_scheduler: MegatronSchedule
    checkpoint_mananager: CheckpointManager
    bridge: MegatronBridge
    vanilla_bridge: bool
    is_param_offload_enabled: bool
    is_optimizer_offload_enabled: bool
    _distillation_use_topk_active: bool

    def to(self, device: str, model: bool, optimizer: bool, grad: bool) -> None:
        """Move parts of the engine."""

    def load_checkpoint(self, local_path: str, *, del_local_after_load: bool) -> None:
        """Load the parts that the checkpoint manager names."""

    def get_data_parallel_size(self) -> int:
        """Return over how many workers a batch is split."""

    def optimizer_step(self) -> float:
        """Take a step, and return the norm of the gradient."""

    def _build_lr_scheduler(self) -> MegatronSchedule: ...


Engine: TypeAlias = FsdpEngine | MegatronEngine
"""verl's engine of an actor or a reference."""
