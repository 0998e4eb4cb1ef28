"""Provenance: two stores are the same if everything that their bytes depend on is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ConfigError
from verl_ee.experience.expert_files import ExpertFile
from verl_ee.experience.provenance import (
    DECISIVE,
    PLAYED_KEYS,
    StoreDifference,
    check_same_source,
    provenance_of,
    store_differences,
)
from verl_ee.experience.store import state_key

ENVIRONMENT = EnvironmentConfig(id="verl_ee/Household-v0")


def experts(sha256: str = "0a", count: int = 3, unsuccessful: int = 0, unplayable: tuple[int, ...] = ()) -> ExpertFile:
    trajectory = ExpertTrajectory(ENVIRONMENT.id, "1", "t", "Go.", (), "", True)
    return ExpertFile(Path("experts.jsonl"), sha256, (trajectory,) * count, unsuccessful, unplayable)


EXPERTS = experts()


def provenance(environment: EnvironmentConfig = ENVIRONMENT, of: ExpertFile = EXPERTS, **config: Any) -> dict[str, str]:
    return provenance_of(environment, CollectConfig.model_validate(config), of)


def keys(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [difference.key for difference in store_differences(one, other)]


def test_every_input_is_part_of_the_provenance() -> None:
    first = provenance()
    assert keys(first, provenance()) == []
    assert keys(first, provenance(of=experts("0b"))) == ["experts_sha256"]
    assert keys(first, provenance(of=experts(count=4))) == ["trajectories"]
    assert keys(first, provenance(of=experts(unsuccessful=2))) == ["experts_filter"]
    assert keys(first, provenance(of=experts(count=2, unplayable=(1,)))) == ["unplayable"]
    assert keys(first, provenance(EnvironmentConfig(id=ENVIRONMENT.id, kwargs={"size": "large"}))) == ["environment"]


def test_a_store_that_does_not_say_what_was_left_out_left_out_nothing() -> None:
    first = provenance()
    older = {key: value for key, value in first.items() if key not in ("experts_filter", "unplayable")}
    assert keys(older, first) == []
    assert keys(older, provenance(of=experts(unsuccessful=2))) == ["experts_filter"]
    assert keys(older, provenance(of=experts(count=2, unplayable=(1,)))) == ["unplayable"]


def test_the_module_in_front_of_an_id_makes_no_difference() -> None:
    with_module = EnvironmentConfig(id=f"verl_ee.envs:{ENVIRONMENT.id}")
    assert provenance(with_module) == provenance()
    older = provenance() | {"environment": provenance()["environment"].replace('"verl_ee/', '"verl_ee.envs:verl_ee/')}
    assert keys(older, provenance()) == []
    bare, prefixed = ({"id": env_id, "version": "1", "kwargs": {}} for env_id in ("own/Own-v0", "own:own/Own-v0"))
    assert state_key(bare, "task", 7, ("go",)) == state_key(prefixed, "task", 7, ("go",))


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
        check_same_source(provenance(of=experts(count=4)), provenance(), "the store", ConfigError, "Collect again.")
    message = "the store was made with another trajectories (4) than is used here (3). Collect again."
    assert str(raised.value) == message
    other = provenance(of=experts(count=2, unplayable=(1,)))
    check_same_source(other, provenance(), "the store", ConfigError, "Collect again.")
    with pytest.raises(ConfigError, match="another unplayable"):
        check_same_source(other, provenance(), "the store", ConfigError, "Collect again.", PLAYED_KEYS)


def test_for_another_filter_the_refusal_says_which_one_to_give() -> None:
    every, successful = provenance(), provenance(of=experts(count=2, unsuccessful=1))
    for stored, expected, value in ((every, successful, "all"), (successful, every, "successful")):
        with pytest.raises(ConfigError) as raised:
            check_same_source(stored, expected, "the store", ConfigError, "Collect again.")
        assert f"Use early_experience.experts_filter={value}" in str(raised.value)
    # Another filter of another file chooses nothing that is the same.
    with pytest.raises(ConfigError, match=r"another experts_sha256.*Collect again\."):
        check_same_source(every, provenance(of=experts("0b", 2, 1)), "the store", ConfigError, "Collect again.")
