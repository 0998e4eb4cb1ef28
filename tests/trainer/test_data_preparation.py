"""Data of a job: experts that the environment completes, and none from experts of an earlier attempt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support import rooms
from support.jobs import ROOT
from support.recording_stages import recorded_stages
from support.stage_worlds import write_branches
from transformers import AutoTokenizer

from verl_ee.config import EarlyExperienceConfig, parse
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.errors import BranchError, ConfigError
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.expert_files import load_experts, write_experts
from verl_ee.run.folder import RunFolder
from verl_ee.run.summary import read_summary
from verl_ee.trainer.data import data_preparation


def job(method: str, experts: Path, environment: str, **keys: Any) -> EarlyExperienceConfig:
    shipped: Any = OmegaConf.to_container(compose(method).early_experience)
    return parse(shipped | {"experts": str(experts), "environment": {"id": environment}} | keys)


@pytest.mark.usefixtures("cluster")
def test_imitation_learns_what_the_environment_completes_and_a_resume_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed, *others = (rooms.Rooms().expert_trajectory(task) for task in ("3", "1", "2"))
    write_experts(tmp_path / "experts.jsonl", [replace(failed, success=False), *others])
    early = job("imitation", tmp_path / "experts.jsonl", rooms.ID)
    stages = recorded_stages(early, tmp_path / "run", [])
    data = stages.preparation.stage_data()
    assert stages.evaluation.stage == "complete"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    texts = [tokenizer.decode(example.prompt) for example in data.examples("imitation")]
    assert len(texts) == 5
    assert all(text.count("You can:") == 1 for text in texts)

    again = recorded_stages(early, tmp_path / "run", [])
    resumed = again.preparation.stage_data()
    assert again.evaluation.stage == "base"
    assert list(resumed.examples("imitation")) == list(data.examples("imitation"))
    kept = load_experts(RunFolder(tmp_path / "run").completed_experts, rooms.ID).trajectories
    assert [item.task for item in kept] == ["1", "2"]


@pytest.mark.usefixtures("cluster")
def test_what_a_collection_knew_when_a_budget_stopped_it_is_in_the_summary(tmp_path: Path) -> None:
    expert = Household().expert_trajectory("train/0")
    first, second, *others = expert.steps
    steps = (first, replace(second, observation="Another room."), *others)
    write_experts(tmp_path / "experts.jsonl", [replace(expert, steps=steps)])
    early = job("iwm", tmp_path / "experts.jsonl", "verl_ee/Household-v0", collect={"world_model": {"workers": 1}})
    with pytest.raises(BranchError, match="could not be reached again"):
        recorded_stages(early, tmp_path / "run", []).preparation.stage_data()
    kept = read_summary(RunFolder(tmp_path / "run").summary_path).sets["world_model"]
    assert kept.states == len(steps)
    assert 0 < kept.mismatches < kept.states
    assert sum(kept.faults.values()) > 0
    assert kept.filled == kept.possible > 0
    assert kept.env_steps > 0


def test_branches_of_an_earlier_attempt_are_not_paired_with_other_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CollectionHere:
        closed = False

        def __init__(self, folder: Path, trajectories: Any, *others: Any) -> None:
            self.folder, self.trajectories, self.provenance = folder, trajectories, others[-1]

        def run(self, *_: Any) -> CollectionResult:
            write_branches(self.folder, self.trajectories, 2, 0, self.provenance)
            return CollectionResult()

    monkeypatch.setattr(data_preparation, "Collection", CollectionHere)
    for number in (0, 1):
        write_experts(tmp_path / f"{number}.jsonl", [Household().expert_trajectory(f"train/{number}")])
    first, other = (
        job("iwm", tmp_path / f"{number}.jsonl", "verl_ee/Household-v0", resume="force") for number in (0, 1)
    )
    recorded_stages(first, tmp_path / "run", []).preparation.stage_data()
    recorded_stages(first, tmp_path / "run", []).preparation.stage_data()
    with pytest.raises(ConfigError, match="another experts_sha256"):
        recorded_stages(other, tmp_path / "run", []).preparation.stage_data()
