"""The reference policy of GRPO's KL term: the mid-trained policy, now and after every resume.

verl builds the reference from `actor_rollout_ref.model.path`. A job that mid-trains first would be pulled back to the
model it started from, so the reference is loaded from the hand-over, which verl's rotation never deletes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from verl_ee.config.models import ROOT
from verl_ee.errors import ConfigError
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.actor.engines import has_adapter

Choice = Literal["mid_trained", "base"]
MESH = ("fsdp_size", "ulysses_sequence_parallel_size")
"""FSDP keys in which actor and reference must agree to share a checkpoint's shards."""
MEGATRON_MESH = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)


class Reference:
    """What the trainer does about the reference, and when."""

    def __init__(self, group: Any, kind: Literal["none", "model", "adapter"], config: DictConfig) -> None:
        """Prepare.

        Args:
            group: worker group that holds the reference.
            kind: nothing to do, a model of its own, or the LoRA actor itself.
            config: of verl.
        """
        self._group, self._kind, self._config = group, kind, config

    @classmethod
    def of(cls, trainer: Any, choice: Choice) -> Reference:
        """Return the reference of a trainer whose workers have been built.

        Args:
            trainer: verl's.
            choice: `early_experience.hand_over.reference`.
        """
        if not trainer.use_reference_policy or choice == "base":
            return cls(None, "none", trainer.config)
        return cls(trainer.ref_policy_wg, "adapter" if trainer.ref_in_actor else "model", trainer.config)

    def anchor(self, actor: Path) -> str:
        """Make an actor checkpoint the reference, and return what it is, for the log.

        Args:
            actor: folder of the checkpoint.
        """
        if self._kind == "none":
            return "as verl builds it"
        if self._kind == "adapter":
            self._group.anchor_adapter(str(actor))
            return "the adapter at hand-over"
        return "+".join(dict.fromkeys(self._group.anchor_reference(str(actor))))

    def checkpoint(self, folder: RunFolder) -> Path | None:
        """Return the hand-over's actor checkpoint that a resumed job is anchored to, or None if it is not.

        Raises:
            ConfigError: if it is missing.
        """
        return None if self._kind == "none" else anchor_of(self._config, folder)

    def before_loading(self, actor: Path | None) -> None:
        """Anchor what must be anchored before verl loads the newest checkpoint into the actor."""
        if actor is not None and self._kind == "adapter":
            self.anchor(actor)

    def after_loading(self, actor: Path | None) -> None:
        """Anchor a reference of its own."""
        if actor is not None and self._kind == "model":
            self.anchor(actor)


def anchor_of(config: DictConfig, folder: RunFolder) -> Path:
    """Return the hand-over's actor checkpoint of the run that a job resumes.

    Raises:
        ConfigError: if it is missing.
    """
    root = folder.root
    if config.trainer.resume_mode == "resume_path":
        root = Path(config.trainer.resume_from_path).expanduser().absolute().parent
    path = root / "global_step_0" / "actor"
    if not path.is_dir():
        raise ConfigError(
            f"{path} is missing, and GRPO's reference is the policy as it was handed over. Bring the folder back, or "
            f"add {ROOT}.hand_over.reference=base to use actor_rollout_ref.model.path as the reference."
        )
    return path


def check_meshes(config: DictConfig) -> None:
    """Refuse a reference that cannot become what the actor saves.

    Raises:
        ConfigError: naming the keys that differ.
    """
    actor, ref = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref
    if has_adapter(config.actor_rollout_ref.model):
        if actor.strategy == "megatron":
            raise ConfigError(
                "actor_rollout_ref.model.lora.rank with actor_rollout_ref.actor.strategy='megatron': the adapter at "
                f"hand-over cannot be GRPO's reference there. Add {ROOT}.hand_over.reference=base, or use fsdp2."
            )
        # The actor itself is the reference.
        return
    pairs = {"strategy": (actor.strategy, ref.strategy)}
    if actor.strategy == ref.strategy:
        part, keys = ("megatron", MEGATRON_MESH) if actor.strategy == "megatron" else ("fsdp_config", MESH)
        pairs = {f"{part}.{key}": (actor[part].get(key), ref[part].get(key)) for key in keys}
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"actor_rollout_ref.ref.{key}={theirs!r} differs from actor_rollout_ref.actor.{key}={ours!r}, so the "
                "mid-trained policy cannot become GRPO's reference. Set both to the same value, or add "
                f"{ROOT}.hand_over.reference=base to keep actor_rollout_ref.model.path as the reference."
            )
