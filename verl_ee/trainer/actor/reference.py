"""The reference policy of GRPO's KL term: the mid-trained policy, now and after every resume.

verl builds the reference from `actor_rollout_ref.model.path`. A job that mid-trains first would be pulled back to the
model it started from, so the reference is loaded from the hand-over, which verl's rotation never deletes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.actor.engines import has_adapter
from verl_ee.trainer.protocols import ReferenceTrainer, ReferenceWorkers

Kind = Literal["none", "model", "adapter"]
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
    """The reference policy of a job: anchored to an actor checkpoint at hand-over, and again after every resume."""

    def __init__(self, workers: ReferenceWorkers | None, kind: Kind, config: DictConfig) -> None:
        """Prepare.

        Args:
            workers: worker group that holds the reference; None where verl's own is left as it is.
            kind: verl's own, a model of its own, or the LoRA actor itself.
            config: config of verl.
        """
        self._workers, self._kind, self._config = workers, kind, config

    @classmethod
    def of(cls, trainer: ReferenceTrainer, choice: Choice) -> Reference:
        """Return the reference of a trainer whose workers have been built.

        Args:
            trainer: verl's.
            choice: `early_experience.hand_over.reference`.
        """
        if not trainer.use_reference_policy or choice == "base":
            return cls(None, "none", trainer.config)
        return cls(trainer.ref_policy_wg, "adapter" if trainer.ref_in_actor else "model", trainer.config)

    def anchor(self, actor: Path) -> str:
        """Make an actor checkpoint the reference, and return a description of it for the log.

        Args:
            actor: folder of the checkpoint.
        """
        if self._workers is None:
            return "as verl builds it"
        if self._kind == "adapter":
            self._workers.anchor_adapter(str(actor))
            return "the adapter at hand-over"
        return joined_fingerprints(self._workers.anchor_reference(str(actor)))

    def checkpoint(self, folder: RunFolder) -> Path | None:
        """Return the hand-over's actor checkpoint that a resumed job is anchored to, or None if it is not.

        Raises:
            ConfigError: if it is missing.
        """
        return None if self._workers is None else anchor_of(self._config, folder)

    def before_loading(self, actor: Path | None) -> None:
        """Anchor a LoRA actor, before verl loads the newest checkpoint into it."""
        if actor is not None and self._kind == "adapter":
            self.anchor(actor)

    def after_loading(self, actor: Path | None) -> None:
        """Anchor a reference that is a model of its own."""
        if actor is not None and self._kind == "model":
            self.anchor(actor)


def joined_fingerprints(fingerprints: Iterable[str]) -> str:
    """Return the fingerprints of all workers as one text, each different one once."""
    return "+".join(dict.fromkeys(fingerprints))


def anchor_of(config: DictConfig, folder: RunFolder) -> Path:
    """Return the hand-over's actor checkpoint of the run that a job resumes.

    Raises:
        ConfigError: if it is missing.
    """
    if config.trainer.resume_mode == "resume_path":
        folder = RunFolder(Path(config.trainer.resume_from_path).expanduser().absolute().parent)
    path = folder.hand_over / "actor"
    if not path.is_dir():
        raise ConfigError(
            f"{path} is missing, and GRPO's reference is the policy as it was handed over. Bring the folder back, or "
            f"add {ROOT}.hand_over.reference=base to use actor_rollout_ref.model.path as the reference."
        )
    return path


def check_meshes(config: DictConfig) -> None:
    """Refuse a reference that is laid out over workers in another way than the actor, and cannot load its checkpoint.

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
    for key, (of_actor, of_reference) in pairs.items():
        if of_actor != of_reference:
            raise ConfigError(
                f"actor_rollout_ref.ref.{key}={of_reference!r} differs from actor_rollout_ref.actor.{key}={of_actor!r}"
                ", so the mid-trained policy cannot become GRPO's reference. Set both to the same value, or add "
                f"{ROOT}.hand_over.reference=base to keep actor_rollout_ref.model.path as the reference."
            )


def check_dtypes(config: DictConfig) -> None:
    """Refuse a reference that computes in another dtype than the actor, and so differs from it at equal weights.

    Args:
        config: one that `check_meshes` lets pass.

    Raises:
        ConfigError: naming the keys that differ.
    """
    if has_adapter(config.actor_rollout_ref.model):
        # The actor itself is the reference.
        return
    actor, ref = _dtypes(config.actor_rollout_ref.actor), _dtypes(config.actor_rollout_ref.ref)
    for key, dtype in actor.items():
        if dtype != ref[key]:
            raise ConfigError(
                f"actor_rollout_ref.ref.{key}={ref[key]!r} differs from actor_rollout_ref.actor.{key}={dtype!r}, so "
                "GRPO's reference would give other log-probabilities than the actor with the same weights. Set both "
                f"to the same value, for instance ++actor_rollout_ref.ref.{key}={dtype}, or add "
                f"{ROOT}.hand_over.reference=base to keep actor_rollout_ref.model.path as the reference."
            )


def _dtypes(side: DictConfig) -> dict[str, str]:
    """Return the dtypes that log-probabilities depend on, by key; an unset key has the default of verl's engine.

    Args:
        side: `actor_rollout_ref.actor` or `actor_rollout_ref.ref`.
    """
    if side.strategy == "megatron":
        return {"megatron.dtype": _dtype_name(side.megatron.get("dtype", "bfloat16"))}
    engine = side.fsdp_config
    mixed = engine.get("mixed_precision") or {}
    dtypes = {
        "fsdp_config.mixed_precision.param_dtype": mixed.get("param_dtype", "bf16"),
        # verl casts buffers to it, rotary frequencies among them, and no later cast brings their digits back.
        "fsdp_config.model_dtype": engine.get("model_dtype") or ("bf16" if engine.forward_only else "fp32"),
    }
    if side.strategy == "fsdp":
        # FSDP2 casts no buffers.
        dtypes["fsdp_config.mixed_precision.buffer_dtype"] = mixed.get("buffer_dtype", "fp32")
    return {key: _dtype_name(value) for key, value in dtypes.items()}


def _dtype_name(value: object) -> str:
    """Return one name for a dtype that has several; verl itself refuses a value that is no dtype."""
    from verl.utils.torch_dtypes import PrecisionType

    try:
        return str(PrecisionType.to_dtype(value)).removeprefix("torch.")
    except RuntimeError:
        return str(value)
