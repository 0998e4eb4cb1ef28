"""The numbers that the agent loop gives verl of episodes, and the config of a job that plays them."""

from __future__ import annotations

from typing import Any

from verl_ee.config import EarlyExperienceConfig


def info(turns: int = 4, no_action: float = 0.0, refused: float = 0.0, env_error: str = "") -> dict[str, Any]:
    """Return the `reward_extra_info` of an episode."""
    return {
        **{"task": "a task", "acc": 0.0, "turns": turns, "no_action": no_action, "refused": refused},
        **{"over_length": 0, "env_failed": int(bool(env_error)), "env_error": env_error},
    }


def early_experience(environment_id: str = "test/World-v0", **keys: Any) -> EarlyExperienceConfig:
    """Return a config of one stage; `keys` are others of `early_experience`."""
    stages = {"imitation": {"objectives": ["imitation"], "epochs": 1, "lr": 1e-5, "batch_size": 4}}
    given = {"method": "imitation", "environment": {"id": environment_id}, "experts": "none", "stages": stages, **keys}
    return EarlyExperienceConfig.model_validate(given)
