"""Checks of a composed job before Ray starts: settings, files, environment, model and folder."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.config import (
    EarlyExperienceConfig,
    Objective,
    built,
    check_expert_keys,
    check_sets,
    early_experience_of,
    needs_experts,
)
from verl_ee.config.base import ROOT
from verl_ee.config.group import TRAINER_MODES
from verl_ee.errors import ConfigError, did_you_mean
from verl_ee.experience.cost import read_prices
from verl_ee.experience.progress import plugin_logger
from verl_ee.objectives.files.row_files import read_rows
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.targets import target_builder
from verl_ee.objectives.writing.endpoint import check_endpoint
from verl_ee.prompts import prompt_format
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER
from verl_ee.trainer.actor.reference import anchor_of, check_dtypes, check_meshes
from verl_ee.trainer.checkpoints import TRACKER, check_actor, check_contents, resumed_from
from verl_ee.trainer.checks.accelerator import check_accelerator
from verl_ee.trainer.checks.agents import check_agents, dataset_files
from verl_ee.trainer.checks.conversations import check_conversations
from verl_ee.trainer.checks.experts import check_experts, check_own_data, check_stores
from verl_ee.trainer.checks.first_state import check_first_state
from verl_ee.trainer.checks.prompt import format_hint, prompt_warning
from verl_ee.trainer.checks.samples import check_samples
from verl_ee.trainer.checks.writing import check_context
from verl_ee.trainer.cpu import active
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.demonstrations import check_demonstrations
from verl_ee.trainer.rollout.sampler import sends_adapter

logger = plugin_logger(__name__)

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
    tokenizer = check_model(config.actor_rollout_ref.model)
    form = prompt_format(early.prompt)
    given = check_examples(early)
    check_demonstrations(early, given)
    check_agents(config, early)
    check_samples(config, early, tokenizer)
    experts = None
    if needs_experts(early, given):
        experts = check_experts(early)
        task_files = [Path(path).expanduser() for _, path in dataset_files(config.data)]
        unsaid = check_first_state(early, experts, given, task_files)
        check_stores(early, experts)
        if tokenizer is not None:
            check_conversations(config, early, tokenizer, experts.trajectories, built(early, given))
        for warning in filter(None, (unsaid, format_hint(early), prompt_warning(early, form, experts.trajectories[0]))):
            logger.warning(warning)
    check_objectives(early, given)
    check_context(config, map(early.writer, _writers(early, given)))
    if early.prices is not None:
        read_prices(Path(early.prices).expanduser())
    folder = check_folder(config, early)
    if experts is not None and HAND_OVER not in folder.finished():
        check_own_data(folder, early, experts, given)
    return early


def check_folder(config: DictConfig, early: EarlyExperienceConfig) -> RunFolder:
    """Return the folder of a job; refuse one that another job or run has, or whose checkpoints cannot be loaded.

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
        return folder
    for name, progress in folder.trained().items():
        check_actor(folder.checkpoint(name, progress.step), config)
    return folder


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


def check_model(model: DictConfig) -> Tokenizer | None:
    """Refuse a model path that holds no tokenizer or no chat template, and return the tokenizer.

    A path that is not a local folder is left to verl, which downloads it: None.
    """
    path = Path(model.path).expanduser()
    if not path.exists():
        if path.is_absolute() or model.path.startswith("."):
            raise ConfigError(f"actor_rollout_ref.model.path={model.path!r} does not exist. Name a model folder.")
        return None
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
    tokenizer.chat_template = model.get("custom_chat_template") or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer in {tokenizer_path!r} has no chat template, so states cannot be rendered as messages. "
            "Use an instruct model, or set actor_rollout_ref.model.custom_chat_template."
        )
    loaded: Tokenizer = tokenizer
    return loaded


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
