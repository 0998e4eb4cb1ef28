"""The provenance of a transition store: everything that its bytes depend on, and whether two stores have the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.config.base import ROOT
from verl_ee.envs import arguments, without_module
from verl_ee.errors import ErrorType
from verl_ee.experience.expert_files import ExpertFile

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
SOURCE_KEYS = ("environment", "experts_filter", "experts_sha256", "trajectories")
"""Keys of a provenance that say what was branched, as the expert file and the config alone tell."""
PLAYED_KEYS = (*SOURCE_KEYS, "unplayable")
"""The same, once the trajectories have been played: equal indices then mean equal trajectories."""
DEFAULTS = {"experts_filter": "all", "unplayable": ""}
"""Values of keys that a provenance of version 0.2 or before does not have."""
FILTER_KEY, FILTER_OPTION = f"{ROOT}.experts_filter=", "--experts-filter "
"""How the filter is written in front of its value: behind a job or an export, and behind `verl-ee collect`."""


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

    def fix(self, otherwise: str, filter_key: str = FILTER_KEY) -> str:
        """Return what to do about the difference.

        Args:
            otherwise: what to do unless the filter alone differs, a sentence.
            filter_key: how the user writes the filter, in front of its value.
        """
        return f"Use {filter_key}{self.stored}." if self.key == "experts_filter" else otherwise


def source_of(environment: EnvironmentConfig, experts: ExpertFile) -> dict[str, str]:
    """Return what identifies the trajectories that are used: the values of `SOURCE_KEYS`.

    A filter that leaves nothing out chooses what `all` chooses, and counts as that.

    Args:
        environment: the environment that they were recorded in.
        experts: the expert file.
    """
    env_id = without_module(environment.id)
    return {
        "environment": json.dumps([env_id, arguments(environment.id, environment.kwargs)], sort_keys=True),
        "experts_filter": "successful" if experts.unsuccessful else "all",
        "experts_sha256": experts.sha256,
        "trajectories": str(experts.chosen),
    }


def provenance_of(
    environment: EnvironmentConfig, config: CollectConfig, experts: ExpertFile, asked: str | None = None
) -> dict[str, str]:
    """Return what identifies a collection: everything that its bytes depend on, and nothing else.

    Args:
        environment: the environment that is branched.
        config: how it is branched.
        experts: the trajectories whose states are branched.
        asked: what a policy that proposes alternatives is asked (`prompts.formats.asked`); None where none does.
    """
    return {
        **({} if asked is None else {"prompt": asked}),
        **source_of(environment, experts),
        "unplayable": ",".join(map(str, experts.unplayable)),
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
    pairs = [StoreDifference(key, _value(stored, key), _value(expected, key)) for key in sorted(compared)]
    return [pair for pair in pairs if pair.stored != pair.expected]


def first_difference(
    stored: Mapping[str, str], expected: Mapping[str, str], keys: Collection[str] | None = None
) -> StoreDifference | None:
    """Return the difference that a refusal names, or None if there is none.

    The filter counts only where the expert file is the same: no filter chooses the same of another file.

    Args:
        stored: provenance of the store.
        expected: provenance where it is used.
        keys: the keys to compare; None compares all.
    """
    found = store_differences(stored, expected, keys)
    is_other_file = any(difference.key == "experts_sha256" for difference in found)
    named = [difference for difference in found if difference.key != "experts_filter" or not is_other_file]
    return named[0] if named else None


def _value(provenance: Mapping[str, str], key: str) -> str | None:
    value = provenance.get(key, DEFAULTS.get(key))
    # Version 0.2 kept the module that registers the environment in front of its id.
    return _without_module(value) if key == "environment" and value is not None else value


def _without_module(environment: str) -> str:
    env_id, *rest = json.loads(environment)
    return json.dumps([without_module(env_id), *rest], sort_keys=True)


def check_same_source(
    stored: Mapping[str, str],
    expected: Mapping[str, str],
    where: str,
    error: ErrorType,
    fix: str,
    keys: Collection[str] = SOURCE_KEYS,
) -> None:
    """Refuse a store that was collected from other expert trajectories, or in another environment.

    Args:
        stored: provenance of the store.
        expected: provenance where it is used.
        where: the store; the message begins with it.
        error: type of the error.
        fix: what to do about it, a sentence; for another filter, the refusal says which one to give.
        keys: `SOURCE_KEYS`, or `PLAYED_KEYS` where both sides know which trajectories can be played.

    Raises:
        EarlyExperienceError: as `error`, naming the first key that differs, and the expert file before its filter.
    """
    difference = first_difference(stored, expected, keys)
    if difference is not None:
        raise error(
            f"{where} was made with another {difference.key} ({difference.stored}) than is used here "
            f"({difference.expected}). {difference.fix(fix)}"
        )
