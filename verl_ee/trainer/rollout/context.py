"""The context of a job's rollout servers: how many tokens a prompt and its response have together."""

from __future__ import annotations

from omegaconf import DictConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.utils import get_max_position_embeddings

_POSITIONS: dict[str, int] = {}
"""Positions by `actor_rollout_ref.model`, kept because verl makes an agent loop for each episode."""
MAX_MODEL_LEN = "actor_rollout_ref.rollout.max_model_len"
"""Key of the context; verl's servers take all positions of the model where it is null."""


def context_length(config: DictConfig) -> int:
    """Return the tokens that a prompt and its response may have together.

    Args:
        config: config of verl. A model that is not here yet is downloaded.

    Raises:
        ValueError: if the model does not say how many positions it has.
    """
    limit = config.actor_rollout_ref.rollout.max_model_len
    if limit is not None:
        return int(limit)
    model = str(config.actor_rollout_ref.model)
    if model not in _POSITIONS:
        typed = omega_conf_to_dataclass(config.actor_rollout_ref.model)
        _POSITIONS[model] = get_max_position_embeddings(typed.hf_config)
    return _POSITIONS[model]
