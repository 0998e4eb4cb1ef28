"""The provenance of a transition store: everything that its bytes depend on, and whether two stores have the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import arguments
from verl_ee.errors import ErrorType

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
SOURCE_KEYS = ("environment", "experts_sha256", "trajectories")
"""Keys of a provenance that say what was branched; the others say how."""


@dataclass(frozen=True)
class StoreDifference:
    """A key in which two provenances differ.

    Attributes:
        key: the key.
        stored: its value in the store, or None if the store does not have it.
        expected: its value where the store is used, or None.
    """

    key: str
    stored: str | None
    expected: str | None


def provenance_of(
    environment: EnvironmentConfig, config: CollectConfig, experts_sha256: str, trajectories: int
) -> dict[str, str]:
    """Return what identifies a collection: everything that its bytes depend on, and nothing else.

    Args:
        environment: the environment that is branched.
        config: how it is branched.
        experts_sha256: hash of the expert file.
        trajectories: number of its trajectories that are branched.
    """
    return {
        "environment": json.dumps([environment.id, arguments(environment.id, environment.kwargs)], sort_keys=True),
        "experts_sha256": experts_sha256,
        "trajectories": str(trajectories),
        "collect": config.model_dump_json(include=set(DECISIVE)),
    }


def store_differences(
    stored: Mapping[str, str], expected: Mapping[str, str], keys: Collection[str] | None = None
) -> list[StoreDifference]:
    """Return the keys in which a store differs from what is expected of it, in alphabetical order.

    Args:
        stored: provenance of the store; its schema version is no part of the comparison.
        expected: provenance where it is used.
        keys: the keys to compare; None compares all.
    """
    compared = {*stored, *expected} - {"schema"} if keys is None else keys
    pairs = [StoreDifference(key, stored.get(key), expected.get(key)) for key in sorted(compared)]
    return [pair for pair in pairs if pair.stored != pair.expected]


def check_same_source(
    stored: Mapping[str, str], expected: Mapping[str, str], where: str, error: ErrorType, fix: str
) -> None:
    """Refuse a store that was collected from other expert trajectories, or in another environment.

    Args:
        stored: provenance of the store.
        expected: provenance where it is used.
        where: the store; the message begins with it.
        error: type of the error.
        fix: what to do about it, a sentence.

    Raises:
        EarlyExperienceError: as `error`, naming the first key that differs.
    """
    for difference in store_differences(stored, expected, SOURCE_KEYS):
        raise error(
            f"{where} was collected with another {difference.key} ({difference.stored}) than is used here "
            f"({difference.expected}). {fix}"
        )
