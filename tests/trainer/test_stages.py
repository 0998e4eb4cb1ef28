"""The order in which stages call workers and servers: on a CPU a wrong order would go unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.recording_stages import recorded_stages
from support.stage_worlds import write_branches

from verl_ee.config import EarlyExperienceConfig, parse
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.expert_files import write_experts
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER
from verl_ee.trainer.data import data_preparation


@pytest.fixture
def early(tmp_path: Path) -> EarlyExperienceConfig:
    """A world model, then one epoch of imitation."""
    write_experts(tmp_path / "experts.jsonl", [Household().expert_trajectory("train/0")])
    keys: Any = OmegaConf.to_container(compose("iwm").early_experience)
    keys |= {"experts": str(tmp_path / "experts.jsonl"), "environment": {"id": "verl_ee/Household-v0", "kwargs": {}}}
    keys["stages"]["imitation"]["epochs"] = 1
    return parse(keys)


@pytest.fixture
def calls(early: EarlyExperienceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of one run through the stages, with everything that is verl's recorded."""
    calls: list[str] = []

    class CollectionHere:
        """A collection without workers."""

        closed = False

        def __init__(self, folder: Path, trajectories: Any, *others: Any) -> None:
            self.folder, self.trajectories, self.provenance = folder, trajectories, others[-1]

        def run(self, *_: Any) -> CollectionResult:
            calls.append("collect")
            write_branches(self.folder, self.trajectories, 2, 0, self.provenance)
            return CollectionResult()

    monkeypatch.setattr(data_preparation, "Collection", CollectionHere)
    recorded_stages(early, tmp_path / "run", calls).run()
    return calls


def test_servers_sleep_while_training_and_wake_with_new_weights(calls: list[str]) -> None:
    ordered = [name for name in calls if name not in ("checkpoint_bytes", "policy_fingerprint")]
    merged = [name for index, name in enumerate(ordered) if index == 0 or ordered[index - 1] != name]
    assert merged == [
        "collect",
        *("sleep_replicas", "begin_stage", "update_supervised", "save_stage", "update_weights", "validate"),
        *("sleep_replicas", "begin_stage", "update_supervised", "save_stage"),
        *("hand_over", "save 0", "exempt_from_rotation", "update_weights", "validate"),
    ]


def test_every_stage_is_recorded_as_finished(calls: list[str], tmp_path: Path) -> None:
    finished = RunFolder(tmp_path / "run").finished()
    assert finished == ("collect/world_model", "world_model", "imitation", "hand_over")


def test_the_hand_over_is_fingerprinted_on_both_sides_and_recorded(
    calls: list[str], early: EarlyExperienceConfig, tmp_path: Path
) -> None:
    first, last = (index for index, name in enumerate(calls) if name == "policy_fingerprint")
    assert first < calls.index("hand_over") < calls.index("exempt_from_rotation") < last
    summary = recorded_stages(early, tmp_path / "run", []).summary
    assert summary.checkpoints == {HAND_OVER: str(tmp_path / "run/global_step_0")}


def test_stages_that_have_finished_are_not_run_again(
    calls: list[str], early: EarlyExperienceConfig, tmp_path: Path
) -> None:
    again: list[str] = []
    stages = recorded_stages(early, tmp_path / "run", again)
    stages.run()
    assert again == ["checkpoint_bytes"]
