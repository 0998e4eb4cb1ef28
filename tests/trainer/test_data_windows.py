"""As much is asked of a job's rollout servers at a time as keeps them busy, for texts and for proposals."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from support.jobs import ROOT
from support.rationale_worlds import GOOD
from support.recording_stages import recorded_stages
from support.stage_worlds import write_branches
from transformers import AutoTokenizer

from verl_ee.config import CollectConfig, EnvironmentConfig, parse
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.experience.expert_files import load_experts, write_experts
from verl_ee.experience.provenance import provenance_of
from verl_ee.trainer.data import data_preparation
from verl_ee.trainer.data.data_preparation import DataPreparation

MODEL = ROOT / "examples/tiny_base/model"
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
HOUSEHOLD = "verl_ee/Household-v0"
AT_A_TIME = 2 * 2 * 3
"""Twice what two servers work on, three sequences each."""


@pytest.fixture
def job() -> DictConfig:
    """A job with two servers of two GPUs each."""
    overrides = [
        *(f"actor_rollout_ref.model.path={MODEL}", "algorithm.adv_estimator=grpo"),
        *("trainer.n_gpus_per_node=4", "actor_rollout_ref.rollout.tensor_model_parallel_size=2"),
        "actor_rollout_ref.rollout.max_num_seqs=3",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides)


def preparation(folder: Path, **keys: Any) -> DataPreparation:
    """The preparation of a job that reflects on five households."""
    write_experts(folder / "experts.jsonl", [Household().expert_trajectory(f"train/{number}") for number in range(5)])
    shipped: Any = OmegaConf.to_container(compose("sr").early_experience)
    given = {"experts": str(folder / "experts.jsonl"), "environment": {"id": HOUSEHOLD}}
    made = recorded_stages(parse(shipped | given | keys), folder / "run", []).preparation
    assert isinstance(made, DataPreparation)
    return made


class Client:
    """Stands for verl's client of rollout servers: it counts the requests that are under way."""

    def __init__(self) -> None:
        self.under_way = self.most = 0

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return SimpleNamespace(token_ids=TOKENIZER.encode(GOOD), stop_reason="completed")


def test_texts_of_the_policy(job: DictConfig, tmp_path: Path) -> None:
    made = preparation(
        tmp_path,
        stores={"reflection": str(tmp_path / "store")},
        reflection={"writer": "policy", "gates": []},
    )
    experts = load_experts(tmp_path / "experts.jsonl", HOUSEHOLD)
    provenance = provenance_of(EnvironmentConfig(id=HOUSEHOLD), CollectConfig(), experts)
    write_branches(tmp_path / "store", experts.trajectories, 2, 0, provenance)
    assert sum(len(item.steps) for item in experts.trajectories) > AT_A_TIME
    client = Client()
    replace(made, config=job, client=lambda: client).stage_data()
    assert client.most == AT_A_TIME


@pytest.mark.parametrize(("k", "states"), [(1, AT_A_TIME), (5, 2), (100, 1)])
def test_states_that_a_policy_is_asked_about(
    k: int, states: int, job: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        """The collection begins."""

    class Collecting:
        closed = False

        def __init__(self, *_: Any) -> None:
            """Nothing is collected."""

        def run(self, proposer: Any, history_length: int) -> None:
            assert proposer.window == states
            raise Reached

    monkeypatch.setattr(data_preparation, "Collection", Collecting)
    made = preparation(tmp_path, collect={"reflection": {"alternatives": "policy", "k": k}})
    with pytest.raises(Reached):
        replace(made, config=job, sampler=lambda: None).stage_data()
