"""What identifies a transition store: whatever changes its bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import arguments

if TYPE_CHECKING:
    pass

DECISIVE = (
    "alternatives",
    "k",
    "temperatures",
    "draws",
    "unlisted",
    "extra_admissible",
    "withhold_expert_tool",
    "include_expert_transition",
    "seed",
)
"""Keys of a collect config that its data depend on."""


def provenance_of(
    environment: EnvironmentConfig, config: CollectConfig, experts_sha256: str, trajectories: int
) -> dict[str, str]:
    """Return what identifies a collection: whatever changes its bytes, and nothing else."""
    return {
        "environment": json.dumps([environment.id, arguments(environment.id, environment.kwargs)], sort_keys=True),
        "experts_sha256": experts_sha256,
        "trajectories": str(trajectories),
        "collect": config.model_dump_json(include=set(DECISIVE)),
    }
