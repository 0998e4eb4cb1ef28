"""Provenance: two stores are the same if everything that their bytes depend on is the same."""

from __future__ import annotations

from typing import Any

import pytest

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import ConfigError
from verl_ee.experience.provenance import (
    DECISIVE,
    StoreDifference,
    check_same_source,
    provenance_of,
    store_differences,
)

ENVIRONMENT = EnvironmentConfig(id="verl_ee/Household-v0")


def provenance(environment: EnvironmentConfig = ENVIRONMENT, sha256: str = "0a", count: int = 3, **config: Any) -> Any:
    return provenance_of(environment, CollectConfig.model_validate(config), sha256, count)


def keys(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [difference.key for difference in store_differences(one, other)]


def test_every_input_is_part_of_the_provenance() -> None:
    first = provenance()
    assert keys(first, provenance()) == []
    assert keys(first, provenance(sha256="0b")) == ["experts_sha256"]
    assert keys(first, provenance(count=4)) == ["trajectories"]
    assert keys(first, provenance(EnvironmentConfig(id=ENVIRONMENT.id, kwargs={"size": "large"}))) == ["environment"]


def test_a_default_that_is_written_out_makes_no_difference() -> None:
    assert provenance(EnvironmentConfig(id=ENVIRONMENT.id, kwargs={"size": "small"})) == provenance()


def test_the_keys_that_the_data_depend_on_are_part_of_it_and_no_others() -> None:
    decisive: dict[str, Any] = {
        "alternatives": "exhaustive",
        "k": 7,
        "temperatures": [0.1],
        "draws": 9,
        "unlisted": "replace",
        "extra_admissible": 4,
        "withhold_expert_tool": True,
        "include_expert_transition": False,
        "seed": 5,
    }
    assert set(decisive) == set(DECISIVE)
    for key, value in decisive.items():
        assert keys(provenance(), provenance(**{key: value})) == ["collect"], key
    for key, value in {"workers": 7, "restore": "replay", "max_failed": 0.5, "step_timeout": 3.0}.items():
        assert provenance(**{key: value}) == provenance(), key


def test_differences_are_listed_in_order_and_the_schema_is_none() -> None:
    stored, expected = {"b": "1", "a": "1", "schema": "2"}, {"b": "2", "c": "1", "schema": "3"}
    assert store_differences(stored, expected) == [
        StoreDifference("a", "1", None),
        StoreDifference("b", "1", "2"),
        StoreDifference("c", None, "1"),
    ]
    assert store_differences(stored, expected, ["c"]) == [StoreDifference("c", None, "1")]


def test_a_store_of_another_source_is_refused_and_one_that_was_branched_differently_is_not() -> None:
    check_same_source(provenance(k=7), provenance(), "the store", ConfigError, "Collect again.")
    with pytest.raises(ConfigError) as raised:
        check_same_source(provenance(count=4), provenance(), "the store", ConfigError, "Collect again.")
    message = "the store was collected with another trajectories (4) than is used here (3). Collect again."
    assert str(raised.value) == message
