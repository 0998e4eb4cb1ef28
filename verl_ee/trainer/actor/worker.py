"""verl's actor worker with what early experience needs: supervised stages, the hand-over, the reference of GRPO."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_ee.config import StageConfig
from verl_ee.objectives.loss import SupervisedLoss
from verl_ee.objectives.schedule import learning_rate
from verl_ee.trainer.actor.engines import (
    checkpoint_bytes,
    checkpoint_contents,
    checkpoint_manager_of,
    load_parts,
    load_reference,
    local_parameters,
    seed_engine,
    vocabulary_group_of,
)
from verl_ee.trainer.actor.optimizer import (
    parameters_with_moments,
    reset_optimizer,
    restore_schedule,
    schedule_position,
    set_schedule,
)

EVERYTHING = ("model", "optimizer", "extra")
LORA = "lora_"
"""Part of the name of every adapter weight."""


class EarlyExperienceWorker(ActorRolloutRefWorker):
    """The worker that mid-trains and then runs GRPO; every method of verl's own stays as it is."""

    _anchor: dict[str, torch.Tensor] | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def begin_stage(self, stage: StageConfig, total_steps: int) -> None:
        """Start a supervised stage: fresh optimizer state, the stage's schedule, seed and the supervised loss.

        Args:
            stage: learning rate, schedule and seed.
            total_steps: optimizer steps of the stage.
        """
        engine = self.actor.engine
        seed_engine(engine, stage.seed, self.rank)
        reset_optimizer(engine)
        # verl steps the schedule once more after the last step of a stage.
        set_schedule(engine, lambda step: learning_rate(stage, min(step, total_steps - 1), total_steps))
        self.actor.set_loss_fn(SupervisedLoss(vocabulary_group_of(engine)))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_stage(self, path: str, step: int) -> None:
        """Save all that a stage needs to go on, in verl's checkpoint layout, apart from verl's rotation.

        Args:
            path: folder of the actor checkpoint.
            step: optimizer steps taken in the stage.
        """
        with checkpoint_contents(self.actor.engine, EVERYTHING):
            self.save_checkpoint(path, None, step, None)
        self.exempt_from_rotation(path)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_stage(self, path: str, contents: Sequence[str]) -> None:
        """Load parts of a checkpoint of `save_stage`.

        Args:
            path: folder of the actor checkpoint.
            contents: of `model`, `optimizer` and `extra`; the schedule is in one of the latter.
        """
        load_parts(self.actor.engine, path, contents)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def hand_over(self, keep_optimizer: bool = False) -> None:
        """Get ready for GRPO: its own learning rate, schedule, random numbers and loss.

        Args:
            keep_optimizer: keep the moments of the last stage, where they otherwise start from nothing.
        """
        engine = self.actor.engine
        seed_engine(engine, engine.engine_config.seed, self.rank)
        if not keep_optimizer:
            reset_optimizer(engine)
        restore_schedule(engine)
        self.actor.set_loss_fn(self.loss_fn)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def anchor_reference(self, path: str) -> str:
        """Make a checkpoint of the actor the reference policy, and return its fingerprint.

        Args:
            path: folder of the actor checkpoint.
        """
        load_reference(self.ref.engine, path)
        return fingerprint(self.ref.engine)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def anchor_adapter(self, path: str) -> None:
        """Make the LoRA adapter of a checkpoint the reference policy; the actor holds that checkpoint's weights then.

        verl's reference of a LoRA actor is the actor without its adapter. The adapter's tensors are kept beside the
        module, so no checkpoint ever has them.

        Args:
            path: folder of the actor checkpoint.
        """
        engine = self.actor.engine
        load_parts(engine, path, ["model"])
        self._anchor = {name: value.detach().clone() for name, value in _adapter(engine.module).items()}

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: Any) -> Any:
        """Compute log-probabilities as verl does, of the reference with the anchored adapter if there is one."""
        if self._anchor is None or not tu.get(data, "no_lora_adapter", False):
            return super().compute_log_prob(data)
        tu.assign_non_tensor(data, no_lora_adapter=False)
        with self._anchored(self._anchor):
            return super().compute_log_prob(data)

    @contextmanager
    def _anchored(self, anchor: dict[str, torch.Tensor]) -> Iterator[None]:
        current = _adapter(self.actor.engine.module)
        kept = {name: value.detach().clone() for name, value in current.items()}
        _copy(anchor, current)
        try:
            yield
        finally:
            _copy(kept, _adapter(self.actor.engine.module))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def exempt_from_rotation(self, path: str) -> None:
        """Take a saved checkpoint off the list from which verl deletes the oldest."""
        manager = checkpoint_manager_of(self.actor.engine)
        manager.previous_saved_paths = [saved for saved in manager.previous_saved_paths if saved != path]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def checkpoint_bytes(self) -> int:
        """Return about how many bytes this worker's part of a checkpoint takes."""
        return checkpoint_bytes(self.actor.engine)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def training_state(self) -> dict[str, Any]:
        """Return what tells two training states apart: hashes of the local weights and moments, rate, schedule."""
        engine = self.actor.engine
        states = enumerate(item for _, item in engine.optimizer.state.items())
        moments = {f"{index} {key}": value for index, item in states for key, value in item.items()}
        return {
            "weights": _digest(local_parameters(engine)),
            "moments": _digest(moments),
            "parameters_with_moments": parameters_with_moments(engine),
            "lr": engine.optimizer.param_groups[0]["lr"],
            "schedule": schedule_position(engine),
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def policy_fingerprint(self) -> str:
        """Return the fingerprint of the policy."""
        return fingerprint(self.actor.engine)


def fingerprint(engine: Any) -> str:
    """Return a short hash of an engine's local weights, rounded to bfloat16: actor and reference may differ in type."""
    return _digest(local_parameters(engine), torch.bfloat16)[:12]


def _digest(tensors: dict[str, Any], dtype: torch.dtype | None = None) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        local = torch.as_tensor(_local(value)).detach().to(device="cpu", dtype=dtype).contiguous()
        sha.update(name.encode())
        sha.update(local.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _local(value: Any) -> Any:
    return value.to_local() if hasattr(value, "to_local") else value


def _adapter(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the local weights of the LoRA adapter, as they are trained."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # FSDP2 may still hold weights gathered in the last forward pass, which would hide a change.
            part.reshard()
    return {name: _local(value.data) for name, value in module.named_parameters() if LORA in name}


def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])
