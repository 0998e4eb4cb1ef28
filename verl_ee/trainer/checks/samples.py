"""Check of samples that are whole episodes: their lengths, and whether a chat of the job grows at all."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError, ExampleError
from verl_ee.objectives.episode_rows import check_growing
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.tokens import encoder_for, model_type, neutral_format


def check_samples(config: DictConfig, early: EarlyExperienceConfig, tokenizer: Tokenizer | None) -> None:
    """Refuse whole episodes where a turn may be longer than an episode, or past turns change.

    Args:
        config: the whole job.
        early: its keys under `early_experience`.
        tokenizer: tokenizer of the model; None where it is not here yet, and only the lengths are checked.

    Raises:
        ConfigError: with the keys and what to do.
    """
    if early.samples == "turn":
        return
    turn, episode = early.max_turn_tokens or 0, config.data.max_response_length
    if turn > episode:
        raise ConfigError(
            f"{ROOT}.max_turn_tokens={turn} is more than data.max_response_length={episode}, which with "
            f"{ROOT}.samples=episode is the limit of all turns together. Raise the latter."
        )
    if tokenizer is None:
        return
    path, kwargs = config.actor_rollout_ref.model.path, config.data.get("apply_chat_template_kwargs", {})
    encoder = encoder_for(tokenizer, model_type(config), kwargs, early.prompt.date, path)
    try:
        check_growing(neutral_format(early.prompt, tokenizer), encoder)
    except ExampleError as error:
        raise ConfigError(str(error)) from None
