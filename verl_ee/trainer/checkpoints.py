"""Checks of verl's checkpoints before a job loads or writes one."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.errors import ConfigError, StageError

TRACKER = "latest_checkpointed_iteration.txt"
"""Where verl keeps the number of the newest checkpoint of a run."""
SHARDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
"""Files that verl's FSDP checkpoint has for every worker, by the name of the part in its config."""
CHECKPOINT_KEY = "actor_rollout_ref.actor.checkpoint"
SHAPE = ("architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Keys of a Hugging Face model config in which two models that share weights agree."""


def resumed_from(config: DictConfig, root: Path) -> Path | None:
    """Return the checkpoint that verl would resume a job from, or None.

    Args:
        config: config of verl.
        root: `trainer.default_local_dir`.

    Raises:
        ConfigError: if the tracker or the folder that it names is broken.
    """
    mode = config.trainer.resume_mode
    if mode == "resume_path":
        path = Path(config.trainer.resume_from_path or "").expanduser()
        if not path.is_dir() or "global_step_" not in path.name:
            raise ConfigError(
                f"trainer.resume_from_path={config.trainer.resume_from_path!r} is no checkpoint folder. "
                "Name a folder global_step_<n>."
            )
        return path
    tracker = root / TRACKER
    if mode == "disable" or not tracker.exists():
        return None
    text = tracker.read_text(encoding="utf-8").strip()
    present = ", ".join(sorted(path.name for path in root.glob("global_step_*"))) or "none"
    if not text.isdecimal():
        raise ConfigError(
            f"{tracker} should hold the number of the newest checkpoint, not {text!r}. Write the number of one that is "
            f"there ({present}) into it."
        )
    path = root / f"global_step_{text}"
    if not path.is_dir():
        raise ConfigError(
            f"{tracker} names global_step_{text}, which is missing (there: {present}). Write the number of one that is "
            "there into it, or bring the folder back."
        )
    return path


def older_is_kept(root: Path, step: int) -> bool:
    """Return whether a checkpoint is left to go on from besides that of a step, which verl could not save.

    verl removes an older one as soon as the actor's part of a newer one is saved, and writes the tracker last.

    Args:
        root: `trainer.default_local_dir`. Without a tracker there, the job goes on from the model it began with.
        step: step of the checkpoint that was to be saved.
    """
    tracker = root / TRACKER
    if not tracker.exists():
        return True
    tracked_step = tracker.read_text(encoding="utf-8").strip()
    return tracked_step not in ("", str(step)) and (root / f"global_step_{tracked_step}" / "actor").is_dir()


def check_contents(config: DictConfig) -> None:
    """Refuse a job whose checkpoints could not be loaded again, or are still being written when it goes on.

    Args:
        config: config of verl.

    Raises:
        ConfigError: naming the keys.
    """
    checkpoint = config.actor_rollout_ref.actor.checkpoint
    saved, loaded = list(checkpoint.save_contents), list(checkpoint.load_contents)
    missing = [part for part in loaded if part not in saved]
    if "model" not in saved or missing:
        raise ConfigError(
            f"{CHECKPOINT_KEY}.save_contents={saved} lacks {', '.join(missing or ['model'])}, so no job could go on "
            f"from its checkpoints with {CHECKPOINT_KEY}.load_contents={loaded}. Save what is loaded, 'model' included."
        )
    if checkpoint.get("async_save"):
        raise ConfigError(
            f"{CHECKPOINT_KEY}.async_save=True: a stage counts as trained once its checkpoint is there, and a kill "
            f"would find half of it. Use {CHECKPOINT_KEY}.async_save=False."
        )


def check_actor(actor: Path, config: DictConfig, contents: Collection[str] = tuple(SHARDS)) -> None:
    """Refuse an actor checkpoint that verl could not load into this job.

    Args:
        actor: its folder.
        config: config of verl; other strategies than FSDP and FSDP2 are checked for their folder and model alone.
        contents: parts that are loaded, of `model`, `optimizer` and `extra`.

    Raises:
        ConfigError: naming the file and what to do.
    """
    if not actor.is_dir():
        raise ConfigError(f"{actor} is missing. Bring the checkpoint back, or resume from another one.")
    for part in ("huggingface", "model/huggingface"):  # FSDP's, Megatron's
        _check_shape(actor, actor / part / "config.json", config.actor_rollout_ref.model.path)
    if config.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2"):
        return
    workers = int(config.trainer.n_gpus_per_node * config.trainer.nnodes)
    for rank in range(workers):
        for part, shard in SHARDS.items():
            if part in contents:
                _check_shard(actor / f"{shard}_world_size_{workers}_rank_{rank}.pt", workers)


def check_space(root: Path, size: int, stages: int, grpo: int) -> None:
    """Refuse to train when the checkpoints to come do not fit on the disk.

    Args:
        root: folder of the run.
        size: bytes of one checkpoint, over all workers.
        stages: checkpoints of mid-training that are kept at a time, the hand-over included.
        grpo: checkpoints of GRPO that are kept at a time.

    Raises:
        StageError: with what is needed, what is free and what to change.
    """
    free, needed = shutil.disk_usage(root).free, size * (stages + grpo)
    if needed > free:
        raise StageError(
            f"trainer.default_local_dir={str(root)!r} has {_gib(free)} free, but the checkpoints of this run need "
            f"{_gib(needed)}: {_gib(size)} each, {stages} of mid-training and {grpo} of GRPO. Free space, choose "
            "another folder, or keep fewer with trainer.max_actor_ckpt_to_keep or a larger trainer.save_freq."
        )


def kept_by_grpo(trainer: Mapping[str, int | None], steps: int) -> int:
    """Return how many checkpoints verl keeps at a time during GRPO.

    Args:
        trainer: verl's `trainer` config.
        steps: steps of GRPO.
    """
    freq, keep = trainer["save_freq"], trainer.get("max_actor_ckpt_to_keep")
    saves = -(-steps // freq) if freq and freq > 0 else 0
    # With one to keep, verl removes the older only after the newer has been saved.
    return min(saves, keep + (keep == 1)) if keep else saves


def _check_shape(actor: Path, path: Path, model: str) -> None:
    """Refuse a checkpoint of another model, where both of the model configs can be read."""
    expected_path = Path(model).expanduser() / "config.json"
    if not path.exists() or not expected_path.exists():
        return
    try:
        saved, expected = (json.loads(item.read_text(encoding="utf-8")) for item in (path, expected_path))
    except ValueError:
        raise ConfigError(f"{path} is broken. Resume from another checkpoint.") from None
    for key in SHAPE:
        if saved.get(key) != expected.get(key):
            raise ConfigError(
                f"{actor} is a checkpoint of another model: {key} is {saved.get(key)!r} there and "
                f"{expected.get(key)!r} in actor_rollout_ref.model.path={model!r}. Name the model of that run, or "
                "another folder."
            )


def _check_shard(path: Path, workers: int) -> None:
    if not path.exists():
        present = sorted(item.name for item in path.parent.glob("model_world_size_*"))
        raise ConfigError(
            f"{path} is missing; there: {', '.join(present) or 'no shard'}. A checkpoint is loaded by as many workers "
            f"as saved it (this job has {workers}): restore the file, change trainer.n_gpus_per_node or "
            "trainer.nnodes, or merge it (python -m verl.model_merger) and start from the merged model."
        )
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path} is cut off. Resume from an older checkpoint with trainer.resume_mode=resume_path.")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
