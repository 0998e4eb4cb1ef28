"""The identity of a run: what changes data or weights is in it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from verl_ee.config import EarlyExperienceConfig, parse
from verl_ee.config.group import compose
from verl_ee.errors import ConfigError
from verl_ee.run.identity import MAX_LINES, Identity, differences, identity_of

JOB = {"actor_rollout_ref": {"model": {"path": "model", "lora": {"rank": 8}}}, "data": {"max_prompt_length": 512}}


def early(experts: Path, **values: Any) -> EarlyExperienceConfig:
    keys: Any = OmegaConf.to_container(compose("iwm").early_experience)
    return parse(keys | {"environment": {"id": "verl_ee/Household-v0"}, "experts": str(experts)} | values)


def job(**actor: Any) -> DictConfig:
    return OmegaConf.merge(JOB, {"actor_rollout_ref": {"actor": actor}})


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    path = tmp_path / "experts.jsonl"
    path.write_text("one\n")
    return path


@pytest.fixture
def identity(experts: Path) -> Identity:
    return identity_of(job(strategy="fsdp2"), early(experts))


def test_an_identity_holds_our_keys_verls_and_the_content_of_files(identity: Identity, experts: Path) -> None:
    assert identity["early_experience.collect.world_model.k"] == 8
    assert identity["early_experience.stages.imitation.objectives"] == ["imitation"]
    assert identity["actor_rollout_ref.model.path"] == "model"
    assert identity["actor_rollout_ref.model.lora.rank"] == 8
    assert identity["actor_rollout_ref.actor.strategy"] == "fsdp2"
    assert identity["data.max_response_length"] is None
    assert len(str(identity["content of early_experience.experts"])) == 16
    experts.write_text("two\n")
    (line,) = differences(identity, identity_of(job(strategy="fsdp2"), early(experts)))
    assert line.startswith("content of early_experience.experts: ")


@pytest.mark.parametrize(
    "change",
    [
        *({"resume": "force"}, {"save_freq": 1}, {"evaluate": False}, {"prices": "prices.yaml"}, {"console": "quiet"}),
        # Limits that a message tells the user to raise or lower.
        *({"max_dropped": 0.5}, {"reflection": {"min_accepted": 0.5}}),
        *({"collect": {"world_model": {key: 0.5}}} for key in ("max_failed", "max_mismatch")),
        *({"collect": {"world_model": {key: 7}}} for key in ("workers", "step_timeout", "start_timeout")),
    ],
)
def test_keys_without_effect_are_left_out(identity: Identity, experts: Path, change: dict[str, Any]) -> None:
    assert differences(identity, identity_of(job(strategy="fsdp2", ppo_epochs=2), early(experts, **change))) == []


def test_what_branches_depend_on_counts(identity: Identity, experts: Path) -> None:
    (line,) = differences(
        identity, identity_of(job(strategy="fsdp2"), early(experts, collect={"world_model": {"k": 3}}))
    )
    assert line == "early_experience.collect.world_model.k: 8 then, 3 now"


def test_of_a_server_the_model_alone_counts(experts: Path) -> None:
    def writers(**endpoint: Any) -> dict[str, Any]:
        return {"writers": {"large": {"kind": "endpoint", "endpoint": {"url": "http://a/v1", "model": "m"} | endpoint}}}

    before = identity_of(job(), early(experts, **writers()))
    assert not differences(before, identity_of(job(), early(experts, **writers(url="http://b/v1", token_limit=9))))
    key = "early_experience.writers.large.endpoint.model"
    assert differences(before, identity_of(job(), early(experts, **writers(model="n")))) == [
        f"{key}: 'm' then, 'n' now"
    ]


def test_differences_are_listed_up_to_a_number() -> None:
    assert differences({"a": 1, "b": [1], "d": None}, {"a": 1, "b": [2], "c": 3}) == [
        "b: [1] then, [2] now",
        "c: None then, 3 now",
    ]
    lines = differences({str(number): 0 for number in range(MAX_LINES + 3)}, {})
    assert (len(lines), lines[-1]) == (MAX_LINES + 1, "and 3 more")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"early_experience\.experts='.*none\.jsonl' cannot be read \(No such file"):
        identity_of(job(), early(tmp_path / "none.jsonl"))
