"""The limit of the texts that a job's own policy writes, against the context of its servers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.config import WriterConfig
from verl_ee.errors import ConfigError
from verl_ee.trainer.rollout.context import MAX_MODEL_LEN, context_length


def check_context(config: DictConfig, writers: Iterable[WriterConfig]) -> None:
    """Refuse a writer whose texts may be so long that no prompt fits beside them.

    Args:
        config: config of verl. A model that is no local folder is not looked at.
        writers: those that the job uses.

    Raises:
        ConfigError: with both keys.
    """
    policies = [writer for writer in writers if writer.kind == "policy"]
    context = _known_context(config) if policies else None
    for writer in policies:
        if context is not None and writer.max_tokens >= context:
            limit = config.actor_rollout_ref.rollout.max_model_len
            origin = f"{MAX_MODEL_LEN} is null, and the model has {context} positions" if limit is None else ""
            raise ConfigError(
                f"{writer.key('max_tokens')}={writer.max_tokens} leaves no room for a prompt: a rollout server takes "
                f"{context} tokens of prompt and text together ({origin or f'{MAX_MODEL_LEN}={context}'}). Lower the "
                f"one (with {writer.key('kind')}=policy), or raise the other as far as the model goes."
            )


def _known_context(config: DictConfig) -> int | None:
    if config.actor_rollout_ref.rollout.max_model_len is None:
        if not Path(config.actor_rollout_ref.model.path).expanduser().exists():
            return None
        try:
            return context_length(config)
        except Exception:  # a model that transformers cannot read; verl will say what is wrong with it
            return None
    return context_length(config)
