"""The order in which stages call workers and servers: on a CPU a wrong order would go unnoticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.game_collections import write_here
from support.jobs import ROOT
from transformers import AutoTokenizer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

import verl_ee.trainer.data_preparation as module
from verl_ee.config import parse
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.expert_files import write_experts
from verl_ee.run.folder import RunFolder
from verl_ee.run.summary import RunSummary, outcomes_of
from verl_ee.trainer.trainer_modes import EarlyExperienceTrainer


class Recorder:
    """Notes the name of every method that is called on it."""

    def __init__(self, calls: list[str], results: dict[str, Any]) -> None:
        self._calls, self._results = calls, results
        self._dispatch_info = {"actor": [0]}

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            self._calls.append(name)
            return self._results.get(name)

        return call


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of one run through the stages, with everything that is verl's recorded."""
    write_experts(tmp_path / "experts.jsonl", [Household().expert_trajectory("train/0")])
    keys = OmegaConf.to_container(compose("iwm").early_experience)
    keys |= {"experts": str(tmp_path / "experts.jsonl"), "environment": {"id": "verl_ee/Household-v0", "kwargs": {}}}
    keys["stages"]["imitation"]["epochs"] = 1
    seen: list[str] = []
    sums = {f"sums/{name}/{what}": [1.0] for name in ("world_model", "imitation") for what in ("nll", "tokens")}
    trainer = object.__new__(EarlyExperienceTrainer)
    trainer.early = parse(keys)
    trainer.folder = RunFolder(tmp_path / "run")
    trainer.summary = RunSummary.load(tmp_path / "run/early_experience/summary.json", 0)
    trainer.checkpoint_manager = Recorder(seen, {})
    results = {"update_actor": {"metrics": {**sums, "grad_norm": [1.0]}}}
    results |= {"checkpoint_bytes": [1], "policy_fingerprint": ["hash"]}
    trainer.actor_rollout_wg = Recorder(seen, results)
    trainer.logger = Recorder([], {})
    trainer.tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    trainer.global_steps = 1
    trainer.use_reference_policy, trainer.total_training_steps = False, 2
    trainer.get_llm_client = lambda: None
    trainer.config = OmegaConf.create(
        {
            "trainer": {"save_freq": 1, "resume_mode": "auto"},
            "data": {"max_prompt_length": 512, "max_response_length": 64},
            "actor_rollout_ref": {"actor": {"use_dynamic_bsz": True}},
        }
    )

    class Here:
        """A collection without workers."""

        closed = False

        def __init__(self, folder: Path, trajectories: Any, *_: Any) -> None:
            self.folder, self.trajectories = folder, trajectories

        def run(self, *_: Any) -> CollectionResult:
            seen.append("collect")
            write_here(self.folder, Household, self.trajectories, 2)
            return CollectionResult()

    monkeypatch.setattr(module, "Collection", Here)
    monkeypatch.setattr(trainer, "_model_config", lambda: type("Config", (), {"model_type": "qwen2"}))
    monkeypatch.setattr(trainer, "_validate", lambda: seen.append("validate"))
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda: seen.append(f"save {trainer.global_steps}"))
    trainer._run_stages()
    return seen


def test_servers_sleep_while_training_and_wake_with_new_weights(calls: list[str]) -> None:
    seen = [name for name in calls if name not in ("checkpoint_bytes", "policy_fingerprint")]
    merged = [name for index, name in enumerate(seen) if index == 0 or seen[index - 1] != name]
    assert merged == [
        "collect",
        *("sleep_replicas", "begin_stage", "update_actor", "save_stage", "update_weights", "validate"),
        *("sleep_replicas", "begin_stage", "update_actor", "save_stage"),
        *("hand_over", "save 0", "exempt_from_rotation", "update_weights", "validate"),
    ]


def test_outcomes_are_recorded_where_every_episode_is_known(tmp_path: Path) -> None:
    sources = ["house/seen"] * 3 + ["house/unseen"] * 2 + ["house/odd"] * 2 + ["house/half"]
    tasks = ["a", "b", "c", "a", "a", "a", None, "a"]
    outcomes = outcomes_of(sources, {"task": tasks, "acc": [1.0, 0.0, 1, 1.0, 0.0, 1.0, 1.0, 0.5]})
    summary = RunSummary.load(tmp_path / "summary.json", 0)
    episodes = {name: sources.count(name) for name in dict.fromkeys(sources)}
    summary.evaluated("grpo", 1.0, dict.fromkeys(episodes, 0.5), episodes, outcomes)
    written = json.loads((tmp_path / "summary.json").read_text())["stages"][0]
    assert written["outcomes"] == {"seen": {"a": True, "b": False, "c": True}}
    assert outcomes_of(sources, {"acc": [1.0] * 8}) == {}


def test_a_job_that_starts_at_the_hand_over_evaluates_the_last_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = object.__new__(EarlyExperienceTrainer)
    keys = OmegaConf.to_container(compose("iwm").early_experience)
    trainer.early = parse(keys | {"experts": "none", "environment": {"id": "verl_ee/Household-v0", "kwargs": {}}})
    trainer.summary = RunSummary.load(tmp_path / "summary.json", 0)
    trainer.stage, trainer._stage_began = "grpo", 0.0
    trainer._episodes, trainer._outcomes = Counter({"house/seen": 4}), {}
    shares = iter((0.25, 0.75))
    metrics = staticmethod(lambda: {"val-core/house/seen/acc/mean@1": next(shares)})
    monkeypatch.setattr(PPOTrainer, "_validate", metrics)
    trainer.summary.evaluated("imitation", 12.0, {"house/seen": 0.5}, {"house/seen": 4}, {})
    for trainer.global_steps in (0, 8):
        trainer._validate()
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [(stage["name"], stage["success"]["seen"]) for stage in stages] == [("imitation", 0.25), ("grpo", 0.75)]
    assert stages[0]["seconds"] == 12.0


def test_every_stage_is_recorded_as_finished(calls: list[str], tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "run").finished() == [
        "collect/world_model",
        "world_model",
        "imitation",
        "hand_over",
    ]
