"""verl's actor worker with what early experience needs: supervised stages, the hand-over, the reference of GRPO."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from tensordict import TensorDict
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
    keep_cached_memory,
    load_parts,
    load_reference,
    local_parameters,
    local_part,
    restore_optimizer_step,
    seed_engine,
    shows_logits,
    vocabulary_group_of,
)
from verl_ee.trainer.actor.offload import Offload
from verl_ee.trainer.actor.optimizer import reset_optimizer, restore_schedule, set_schedule

EVERYTHING = ("model", "optimizer", "extra")
LORA = "lora_"
"""Part of the name of every adapter weight."""
Tensors = dict[str, torch.Tensor]
"""Tensors by the name of their parameter."""


class EarlyExperienceWorker(ActorRolloutRefWorker):
    """The worker that mid-trains and then runs GRPO; every method of verl's own stays as it is."""

    _anchor: Tensors | None = None

    @cached_property
    def _offload(self) -> Offload:
        return Offload(self.actor.engine)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def begin_stage(self, stage: StageConfig, total_steps: int) -> None:
        """Start a supervised stage: fresh optimizer state, the stage's schedule, seed and the supervised loss.

        Args:
            stage: learning rate, schedule and seed.
            total_steps: optimizer steps of the stage.
        """
        engine = self.actor.engine
        seed_engine(engine, stage.seed, self.rank)
        self._offload.load()
        reset_optimizer(engine)
        # verl steps the schedule once more after the last step of a stage.
        set_schedule(engine, lambda step: learning_rate(stage, min(step, total_steps - 1), total_steps))
        self.actor.set_loss_fn(SupervisedLoss(vocabulary_group_of(engine)))
        keep_cached_memory(engine)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_supervised(self, data: TensorDict) -> TensorDict | None:
        """Take one optimizer step of a stage, during which weights and moments stay on the device.

        Args:
            data: mini-batch of `to_batch`.
        """
        self._offload.load()
        # Seen once, the logits give the token accuracy; nothing is distilled.
        shown = shows_logits(self.actor.engine)
        tu.assign_non_tensor(data, disable_auto_offload=True, distillation_use_topk=shown)
        return self.update_actor(data)

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
    def save_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, global_step: int = 0, max_ckpt_to_keep: int | None = None
    ) -> None:
        """Save as verl does; it leaves the weights in the host's memory, so the moments follow them."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        self._offload.release()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_stage(self, path: str, contents: Sequence[str]) -> None:
        """Load parts of a checkpoint of `save_stage`.

        Args:
            path: folder of the actor checkpoint.
            contents: any of `model`, `optimizer` and `extra`; the schedule is in one of the latter.
        """
        load_parts(self._offload, path, contents)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def hand_over(self, keep_optimizer: bool = False) -> None:
        """Get ready for GRPO: its own learning rate, schedule, random numbers and loss.

        Args:
            keep_optimizer: keep the moments of the last stage, where they otherwise start from nothing.
        """
        engine = self.actor.engine
        seed_engine(engine, engine.engine_config.seed, self.rank)
        if not keep_optimizer:
            with self._offload.loaded():
                reset_optimizer(engine)
        restore_schedule(engine)
        restore_optimizer_step(engine)
        self.actor.set_loss_fn(self.loss_fn)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def anchor_reference(self, path: str) -> str:
        """Make a checkpoint of the actor the reference policy, and return its fingerprint.

        Args:
            path: folder of the actor checkpoint.
        """
        reference = Offload(self.ref.engine)
        load_reference(reference, path)
        return fingerprint(reference)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def anchor_adapter(self, path: str) -> None:
        """Make the LoRA adapter of a checkpoint the reference policy; the actor holds that checkpoint's weights then.

        verl's reference of a LoRA actor is the actor without its adapter. The adapter's tensors are kept beside the
        module, so no checkpoint ever has them.

        Args:
            path: folder of the actor checkpoint.
        """
        load_parts(self._offload, path, ["model"])
        with self._offload.weights():
            self._anchor = _copies(_adapter(self.actor.engine.module))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """Compute log-probabilities as verl does, of the reference with the anchored adapter if there is one."""
        if self._anchor is None or not tu.get(data, "no_lora_adapter", False):
            return super().compute_log_prob(data)
        # The adapter is exchanged where it is computed with: a copy of it to the host would still be under way.
        tu.assign_non_tensor(data, no_lora_adapter=False, disable_auto_offload=True)
        with self._offload.weights(), self._anchored(self._anchor):
            return super().compute_log_prob(data)

    @contextmanager
    def _anchored(self, anchor: Tensors) -> Iterator[None]:
        """Give the actor the adapter of the reference for a while."""
        adapter = _adapter(self.actor.engine.module)
        trained = _copies(adapter)
        _overwrite(adapter, anchor)
        try:
            yield
        finally:
            _overwrite(_adapter(self.actor.engine.module), trained)

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
    def policy_fingerprint(self) -> str:
        """Return the fingerprint of the policy."""
        return fingerprint(self._offload)


def fingerprint(weights: Offload) -> str:
    """Return a short hash of an engine's local weights, rounded to bfloat16: actor and reference may differ in type."""
    sha = hashlib.sha256()
    with weights.weights():
        for name, value in sorted(local_parameters(weights.engine).items()):
            rounded = value.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
            sha.update(name.encode())
            sha.update(rounded.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def _adapter(module: torch.nn.Module) -> Tensors:
    """Return the local weights of the LoRA adapter, as they are trained."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # FSDP2 may still hold weights gathered in the last forward pass, which would hide a change.
            part.reshard()
    return {name: local_part(value.data) for name, value in module.named_parameters() if LORA in name}


def _copies(tensors: Tensors) -> Tensors:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _overwrite(tensors: Tensors, values: Tensors) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
