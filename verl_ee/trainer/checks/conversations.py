"""Check of the chat template on a job's own data: what the policy learns is what rollouts show and read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from omegaconf import DictConfig

from verl_ee.config import EarlyExperienceConfig, Objective
from verl_ee.config.base import ROOT
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ConfigError, ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_rows import episode_row
from verl_ee.objectives.examples import encode
from verl_ee.objectives.rows import Row, imitation_rows
from verl_ee.prompts.format import PromptFormat
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.tokens import encoder_for, model_type, neutral_format

ROWS = 64
"""Rows of each objective that are tried, from the beginning of the expert file."""
RATIONALE = "I compare what I can do here, and this leads on."
"""Stands for rationales, which are not written yet."""


def check_conversations(
    config: DictConfig,
    early: EarlyExperienceConfig,
    tokenizer: Tokenizer,
    trajectories: Sequence[ExpertTrajectory],
    objectives: Collection[Objective],
) -> None:
    """Refuse a job whose chat template shows prompts in training that rollouts do not show, or changes an answer.

    Args:
        config: the whole job.
        early: its keys under `early_experience`.
        tokenizer: tokenizer of the model.
        trajectories: trajectories of the expert file.
        objectives: objectives whose rows the job builds.

    Raises:
        ConfigError: naming the step and the first token that differs.
    """
    path, kwargs = config.actor_rollout_ref.model.path, config.data.get("apply_chat_template_kwargs", {})
    form = neutral_format(early.prompt, tokenizer)
    encoder = encoder_for(tokenizer, model_type(config), kwargs, early.prompt.date, path)
    # Instructions that the file leaves open are not known yet, and tell nothing of the template.
    told = [replace(item, instruction=item.instruction or "") for item in trajectories[:ROWS]]
    for objective in objectives:
        for row in islice(_rows(objective, told, early.history_length, form), ROWS):
            where = f"{objective}, {row.provenance}"
            try:
                read = form.read(encoder.text(encoder.conversation(row.prompt, row.target)[1]))
            except ExampleError as error:
                raise ConfigError(f"{where}: {error}") from None
            if read != form.read(row.target):
                raise ConfigError(
                    f"{where}: the chat template makes another answer of {row.target!r}: it is read back as {read}. "
                    "Use another chat template, or another early_experience.prompt.format."
                )
            if objective == "world_model" and read.action is not None:
                raise ConfigError(
                    f"{where}: the answer of the world model, {row.target!r}, is read as the action {read.action!r}. "
                    "Change `outcome` of early_experience.prompt.format."
                )
    if early.samples == "episode" and "imitation" in objectives:
        _check_episodes(told, form, encoder)


def _check_episodes(trajectories: Sequence[ExpertTrajectory], form: PromptFormat, encoder: Encoder) -> None:
    """Refuse format and template if they change past turns of the experts."""
    turns = 0
    for index, trajectory in enumerate(trajectories):
        try:
            row = episode_row(trajectory, form, f"trajectory {index}")
            list(encode(filter(None, [row]), encoder))
        except ExampleError as error:
            raise ConfigError(f"{ROOT}.samples=episode: {error}") from None
        turns += len(trajectory.steps)
        if turns >= ROWS:
            return


def _rows(
    objective: Objective, trajectories: Sequence[ExpertTrajectory], history_length: int | None, form: PromptFormat
) -> Iterator[Row]:
    """Yield rows as a stage would have them, as far as they are known before anything is collected or written."""
    if objective == "imitation":
        yield from imitation_rows(trajectories, history_length, form)
        return
    for index, trajectory in enumerate(trajectories):
        for step, state in enumerate(expert_states(trajectory, history_length)):
            action, observation = trajectory.steps[step].action, state.observation
            prompt = form.policy_prompt(state), form.response(action, RATIONALE)
            if objective == "world_model":
                prompt = form.world_model_prompt(state, action), form.outcome(observation)
            yield Row(tuple(prompt[0]), prompt[1], objective, f"trajectory {index}, step {step}")
