"""Checks of a composed job before Ray starts: settings, files, environment, model and folder."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.config import (
    CollectConfig,
    EarlyExperienceConfig,
    Objective,
    built,
    check_expert_keys,
    check_sets,
    early_experience_of,
    needs_experts,
    sets_of,
)
from verl_ee.config.base import ROOT
from verl_ee.config.group import TRAINER_MODES
from verl_ee.envs import make
from verl_ee.errors import ConfigError, EnvError, did_you_mean
from verl_ee.experience.cost import read_prices
from verl_ee.experience.expert_files import ExpertFile, load_experts
from verl_ee.experience.provenance import check_same_source, provenance_of
from verl_ee.experience.store import read_provenance
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.row_files import read_rows
from verl_ee.objectives.targets import target_builder
from verl_ee.objectives.writing.endpoint import check_endpoint
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER
from verl_ee.trainer.actor.reference import anchor_of, check_dtypes, check_meshes
from verl_ee.trainer.checkpoints import TRACKER, check_actor, check_contents, resumed_from
from verl_ee.trainer.checks.accelerator import check_accelerator
from verl_ee.trainer.cpu import active
from verl_ee.trainer.rollout.demonstrations import check_demonstrations
from verl_ee.trainer.rollout.sampler import sends_adapter

RESUME_MODES = ("auto", "disable", "resume_path")
"""verl's values of `trainer.resume_mode`."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def check_job(config: DictConfig) -> EarlyExperienceConfig:
    """Check the composed config of a job that has the flag, and return its `early_experience`.

    Raises:
        ConfigError: with key, value, what is allowed and the fix.
        EnvError: if the environment is unknown or cannot be made.
        ExpertFileError: if the expert file is missing, broken or of another environment.
        ExampleFileError: if the rows file is missing or broken.
    """
    early = early_experience_of(config)
    _check_verl(config)
    check_accelerator(config)
    check_contents(config)
    check_model(config.actor_rollout_ref.model)
    given = check_examples(early)
    check_demonstrations(early, given)
    if needs_experts(early, given):
        experts = check_experts(early)
        check_alternatives(early, experts, given)
        check_stores(early, experts)
    check_objectives(early, given)
    if early.prices is not None:
        read_prices(Path(early.prices).expanduser())
    check_folder(config, early)
    return early


def check_folder(config: DictConfig, early: EarlyExperienceConfig) -> None:
    """Refuse a folder that another job or run has, or whose checkpoints cannot be loaded.

    Raises:
        ConfigError: naming the file and what to do.
        StageError: if the state file is broken or of another schema.
    """
    from verl.trainer.ppo.utils import need_reference_policy

    folder = RunFolder.of(config, early)
    folder.check_free(config.trainer.resume_mode, early.resume == "force")
    folder.hold().close()
    anchored = need_reference_policy(config) and early.hand_over.reference == "mid_trained"
    if anchored:
        check_meshes(config)
        check_dtypes(config)
    if HAND_OVER in folder.finished() or config.trainer.resume_mode == "resume_path":
        checkpoint = resumed_from(config, folder.root)
        if checkpoint is None:
            raise ConfigError(
                f"The stages of this run have finished, but {folder.root / TRACKER} is missing, so verl would train "
                "the model from before them. Bring the file back, or write the number of a checkpoint into it: 0 for "
                "the hand-over."
            )
        check_actor(checkpoint / "actor", config, config.actor_rollout_ref.actor.checkpoint.load_contents)
        if anchored:
            check_actor(anchor_of(config, folder), config, ["model"])
        return
    for name, progress in folder.trained().items():
        check_actor(folder.checkpoint(name, progress.step), config)


def check_experts(config: EarlyExperienceConfig) -> ExpertFile:
    """Load the expert file and compare it with the environment of the job."""
    env = make(config.environment.id, config.environment.kwargs)
    try:
        return load_experts(
            config.experts,
            environment=config.environment.id,
            kwargs=config.environment.kwargs,
            limit=config.max_experts,
        )
    finally:
        env.close()


def check_examples(config: EarlyExperienceConfig) -> list[Objective]:
    """Read the rows file, and return the objectives that need not be built.

    Raises:
        ConfigError: if no stage learns any of them, or an objective that is built lacks its branches.
        ExampleFileError: if the file is missing or broken.
    """
    given = list(read_rows(config.examples))
    if config.examples is not None and not set(given) & set(built(config)):
        raise ConfigError(
            f"{ROOT}.examples={config.examples!r} has rows of {', '.join(given)}, which no stage learns. Stages learn: "
            f"{', '.join(built(config))}. Name another file, or set {ROOT}.examples=null."
        )
    check_expert_keys(config, given)
    check_sets(config, given)
    return given


def check_alternatives(config: EarlyExperienceConfig, experts: ExpertFile, given: Collection[Objective] = ()) -> None:
    """Refuse sets that need listed actions, for an environment that lists none."""
    collected = [name for name in sets_of(config, given) if name not in config.stores]
    needing_list = [name for name in collected if _needs_list(config.collect[name])]
    if not needing_list:
        return
    env = make(config.environment.id, config.environment.kwargs)
    try:
        first = experts.trajectories[0]
        _, info = env.reset(seed=first.seed, options={"task": first.task})
    except Exception as error:  # the environment is somebody else's code
        raise EnvError(
            f"{config.environment.id} cannot be reset to task {first.task!r} of the first expert trajectory: "
            f"{type(error).__name__}: {error}. `verl-ee envs check` tries an environment."
        ) from error
    finally:
        env.close()
    if info.get("admissible_actions") is None:
        name = needing_list[0]
        raise ConfigError(
            f"{ROOT}.collect.{name}.alternatives={config.collect[name].alternatives!r} needs listed actions, but "
            f"{config.environment.id} lists no admissible actions (info['admissible_actions'] is missing after reset). "
            f"Let the environment list them, or use alternatives=policy with unlisted=keep."
        )


def _needs_list(config: CollectConfig) -> bool:
    """Return whether a set of branches takes alternatives from the actions that the environment lists."""
    return config.alternatives != "policy" or config.unlisted == "replace"


def check_stores(config: EarlyExperienceConfig, experts: ExpertFile) -> None:
    """Refuse a store that was collected from other expert trajectories, or in another environment."""
    expected = provenance_of(config.environment, CollectConfig(), experts.sha256, len(experts.trajectories))
    for name, path in config.stores.items():
        check_same_source(
            read_provenance(Path(path).expanduser()),
            expected,
            f"{ROOT}.stores.{name}={path!r}",
            ConfigError,
            "Use the expert file and environment of the store, or collect again.",
        )


def check_objectives(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> None:
    """Refuse targets, writers and gates that cannot be used.

    Raises:
        ConfigError: with the key and the fix.
    """
    target_builder(config.world_model)
    for name in _writers(config, given):
        writer = config.writer(name)
        if writer.kind == "endpoint":
            check_endpoint(writer)
    for gate in config.reflection.gates:
        if gate not in GATES:
            raise ConfigError(f"{ROOT}.reflection.gates has no gate {gate!r}. {did_you_mean(gate, GATES)}")


def _writers(config: EarlyExperienceConfig, given: Collection[Objective]) -> list[str]:
    """Return the names of the writers that a job uses."""
    objectives, names = built(config, given), []
    if "reflection" in objectives:
        names.append(config.reflection.writer)
    if "world_model" in objectives and config.world_model.target == "summary":
        names.append(config.world_model.writer)
    return names


def check_model(model: DictConfig) -> None:
    """Refuse a model path that holds no tokenizer or no chat template.

    A path that is not a local folder is left to verl, which downloads it.
    """
    path = Path(model.path).expanduser()
    if not path.exists():
        if path.is_absolute() or model.path.startswith("."):
            raise ConfigError(f"actor_rollout_ref.model.path={model.path!r} does not exist. Name a model folder.")
        return
    from transformers import AutoTokenizer

    tokenizer_path = model.get("tokenizer_path") or model.path
    trusted = model.get("trust_remote_code", False)
    # From a model config alone transformers makes a tokenizer that knows no word.
    folder = Path(tokenizer_path).expanduser()
    if folder.exists() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise _no_tokenizer(tokenizer_path, f"none of {', '.join(TOKENIZER_FILES)} is there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=trusted)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for a broken folder
        raise _no_tokenizer(tokenizer_path, (str(error).strip() or type(error).__name__).splitlines()[0]) from None
    if not (tokenizer.chat_template or model.get("custom_chat_template")):
        raise ConfigError(
            f"The tokenizer in {tokenizer_path!r} has no chat template, so states cannot be rendered as messages. "
            "Use an instruct model, or set actor_rollout_ref.model.custom_chat_template."
        )


def _no_tokenizer(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path!r} holds no tokenizer that transformers can load ({reason}). Save one into the folder with "
        "tokenizer.save_pretrained, or set actor_rollout_ref.model.tokenizer_path."
    )


def _check_verl(config: DictConfig) -> None:
    """Refuse combinations that verl would accept and early experience cannot serve."""
    if not config.trainer.use_v1:
        raise ConfigError(
            "trainer.use_v1=False: early experience runs in verl's V1 trainer only. Remove trainer.use_v1=False."
        )
    mode = config.trainer.v1.trainer_mode
    if mode not in TRAINER_MODES.values():
        own_mode = TRAINER_MODES.get(mode)
        advice = f"Write trainer.v1.trainer_mode={own_mode}" if own_mode else did_you_mean(mode, TRAINER_MODES.values())
        raise ConfigError(
            f"trainer.v1.trainer_mode={mode!r} replaces the trainer that +{ROOT} selects. {advice}, or leave it out "
            "for verl's 'sync'."
        )
    resume = config.trainer.resume_mode
    if resume not in RESUME_MODES:
        raise ConfigError(f"trainer.resume_mode={resume!r} does not exist. {did_you_mean(str(resume), RESUME_MODES)}")
    from verl.trainer.ppo.utils import need_critic

    with warnings.catch_warnings(action="ignore"):
        # verl gives the same warning again when the job starts.
        is_critic_needed = need_critic(config)
    if is_critic_needed:
        raise ConfigError(
            f"algorithm.adv_estimator={config.algorithm.adv_estimator!r} needs a critic, which mid-training does not "
            "warm up. Use an estimator without one, for instance algorithm.adv_estimator=grpo."
        )
    model = config.actor_rollout_ref.model
    if active() and sends_adapter(model):
        raise ConfigError(
            f"actor_rollout_ref.model.lora.merge={model.lora.merge}: vLLM's CPU build takes no adapter from verl. Add "
            "actor_rollout_ref.model.lora.merge=True, so that the servers get merged weights."
        )
