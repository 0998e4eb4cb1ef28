"""Check of the chat template on a job's own data: what the policy learns is what rollouts show and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from omegaconf import DictConfig
from transformers import AutoConfig

from verl_ee.config import EarlyExperienceConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ConfigError, ExampleError
from verl_ee.objectives.rows import Row, imitation_rows
from verl_ee.prompts.format import PromptFormat
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.tokens import encoder_for, neutral_format

ROWS = 64
"""Expert steps that are tried, from the beginning of the file."""


def check_conversations(
    config: DictConfig, early: EarlyExperienceConfig, tokenizer: Tokenizer, trajectories: Sequence[ExpertTrajectory]
) -> None:
    """Refuse a job whose chat template shows prompts in training that rollouts do not show, or changes an answer.

    Args:
        config: the whole job.
        early: its keys under `early_experience`.
        tokenizer: tokenizer of the model.
        trajectories: trajectories of the expert file.

    Raises:
        ConfigError: naming the step and the first token that differs.
    """
    model = config.actor_rollout_ref.model
    model_type = AutoConfig.from_pretrained(
        model.path, trust_remote_code=model.get("trust_remote_code", False)
    ).model_type
    form = neutral_format(early.prompt, tokenizer)
    encoder = encoder_for(tokenizer, model_type, config.data.get("apply_chat_template_kwargs", {}), early.prompt.date)
    for row in islice(_rows(trajectories, early.history_length, form), ROWS):
        try:
            read = form.read(encoder.text(encoder.target(row.prompt, row.target)))
        except ExampleError as error:
            raise ConfigError(f"{row.provenance}: {error}") from None
        if read != form.read(row.target):
            raise ConfigError(
                f"{row.provenance}: the chat template makes another answer of {row.target!r}: it is read back as "
                f"{read}. Use another chat template, or another early_experience.prompt.format."
            )


def _rows(trajectories: Sequence[ExpertTrajectory], history_length: int | None, form: PromptFormat) -> Iterator[Row]:
    # What the file leaves open is not known yet, and tells nothing of the template.
    told = (replace(item, instruction=item.instruction or "") for item in trajectories)
    return imitation_rows(told, history_length, form)
