"""The needs of a job's stages: experts and an environment only for objectives that no file gives."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_ee.config import Objective, check_environment, check_expert_keys, needs_experts, parse
from verl_ee.config.group import compose
from verl_ee.errors import ConfigError


def keys_of(method: str, **changes: Any) -> dict[str, Any]:
    """The keys of a shipped method, whose experts and environment nobody named."""
    keys: Any = OmegaConf.to_container(compose(method).early_experience)
    keys |= {"environment": {"id": "???"}, "experts": "???"}
    return {**keys, **changes}


@pytest.mark.parametrize(
    ("method", "given", "changes", "needed"),
    [
        ("iwm", [], {}, True),
        ("iwm", ["world_model"], {}, True),
        ("iwm", ["imitation"], {}, True),
        ("iwm", ["imitation", "world_model"], {}, False),
        ("iwm_sr", ["imitation", "world_model"], {}, True),
        ("iwm_sr", ["imitation", "world_model", "reflection"], {}, False),
        # Demonstrations stand for imitation alone.
        ("imitation", [], {"demonstrations": "d.parquet"}, False),
        ("iwm", ["world_model"], {"demonstrations": "d.parquet"}, False),
        ("iwm", [], {"demonstrations": "d.parquet"}, True),
        # One budget counts the expert states, if nothing else says how many there are.
        ("iwm", ["imitation", "world_model"], {"world_model": {"budget": "one_to_one"}}, False),
    ],
)
def test_experts_are_needed_for_what_no_file_gives(
    method: str, given: list[Objective], changes: dict[str, Any], needed: bool
) -> None:
    config = parse(keys_of(method, examples="rows.jsonl", **changes))
    assert needs_experts(config, given) == needed
    if not needed:
        check_expert_keys(config, given)
        return
    with pytest.raises(ConfigError, match=r"early_experience.environment.id has no value .*has no rows of"):
        check_expert_keys(config, given)
    keys = keys_of(method, examples="rows.jsonl", **changes) | {"environment": {"id": "verl_ee/Household-v0"}}
    with pytest.raises(ConfigError, match=r"early_experience.experts has no value"):
        check_expert_keys(parse(keys), given)


def test_a_world_model_of_as_many_branches_as_states_needs_the_states() -> None:
    stage = keys_of("iwm")["stages"]["world_model"]
    keys = keys_of("iwm", examples="rows.jsonl", stages={"world_model": stage})
    assert not needs_experts(parse(keys), ["world_model"])
    assert needs_experts(parse(keys | {"world_model": {"budget": "one_to_one"}}), ["world_model"])


def test_a_job_without_a_file_of_examples_is_asked_for_experts_at_once() -> None:
    with pytest.raises(ConfigError, match=r"early_experience.environment.id has no value. Add "):
        parse(keys_of("iwm"))


def test_an_environment_is_asked_for_where_episodes_are_played() -> None:
    config = parse(keys_of("iwm", examples="rows.jsonl"))
    with pytest.raises(ConfigError, match=r"environment.id has no value, but rows of the dataset name the agent"):
        check_environment(config)
    check_environment(parse(keys_of("iwm") | {"environment": {"id": "verl_ee/Household-v0"}, "experts": "e.jsonl"}))
