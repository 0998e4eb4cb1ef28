"""The context of rollout servers: what a job says, or all positions of its model."""

from __future__ import annotations

import hydra
import pytest
from support.job_checks import MODEL

from verl_ee.trainer.rollout.context import context_length


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ([], 4096),
        (["actor_rollout_ref.rollout.max_model_len=300"], 300),
        (["+actor_rollout_ref.model.override_config.max_position_embeddings=2048"], 2048),
    ],
)
def test_null_is_what_the_model_takes(overrides: list[str], length: int) -> None:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", [f"actor_rollout_ref.model.path={MODEL}", *overrides])
    assert context_length(config) == length
