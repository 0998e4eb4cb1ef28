"""The summary of a run: what is recorded is read back, of this version and of the one before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.report_runs import COLLECT, write_run

from verl_ee.errors import StoreError
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.cost import Cost
from verl_ee.run.stage_result import Share, outcomes_of
from verl_ee.run.summary import RunSummary, read_summary


def content_of(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_summary_is_complete_after_every_record(tmp_path: Path) -> None:
    path = tmp_path / "early_experience" / "summary.json"
    summary = RunSummary.load(path, seed=3)
    summary.record_rationales({"accepted": 5, "length": 2}, 1.234)
    assert content_of(path) == {
        "schema": 2,
        "seed": 3,
        "collect": None,
        "stages": [],
        "checkpoints": {},
        "reflect": {"gates": {"accepted": 5, "length": 2}, "seconds": 1.23},
    }
    summary.record_summaries(4, 1, 2.0)
    assert content_of(path)["summarise"] == {"written": 4, "empty": 1, "seconds": 2.0}
    summary.record_checkpoint("grpo", tmp_path / "global_step_1")
    summary.record_checkpoint("grpo", tmp_path / "global_step_2")
    assert content_of(path)["checkpoints"] == {"grpo": str(tmp_path / "global_step_2")}
    assert RunSummary.load(path, seed=0) == summary


def test_sets_are_recorded_each_and_together(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summary = RunSummary.load(path, 0)
    cost = Cost(env_steps=10, resets=2, prompt_tokens=3, completion_tokens=4, seconds=1.5, bytes=100)
    first = CollectionResult(states=5, restore="fork", faults={"died": 1}, cost=cost)
    summary.record_set("world_model", replace(first, alternatives=AlternativeCounts(5, 0, 4)))
    second = CollectionResult(states=5, lost=1, restore="replay", cost=cost)
    summary.record_set("reflection", replace(second, alternatives=AlternativeCounts(5, 4, 4, 12, 2)))
    content = content_of(path)
    assert (content["sets"]["world_model"]["restore"], content["sets"]["reflection"]["mismatches"]) == ("fork", 1)
    assert content["collect"] == {
        **{"states": 10, "transitions": 0, "branches": 0, "reused": 0, "mismatches": 1, "failed": 0},
        **{"faults": {"died": 1}, "restore": "fork+replay", "env_steps": 20, "resets": 4},
        **{"prompt_tokens": 6, "completion_tokens": 8, "seconds": 3.0, "bytes": 200},
        **{"possible": 10, "own": 4, "filled": 8, "responses": 12, "without_action": 2, "unasked": 0},
    }
    # A set that is collected again replaces its entry.
    summary.record_set("reflection", CollectionResult(states=7, cost=cost))
    assert content_of(path)["collect"]["states"] == 12
    assert RunSummary.load(path, 0) == summary


def test_outcomes_are_recorded_where_every_episode_is_known(tmp_path: Path) -> None:
    sources = ["house/seen"] * 3 + ["house/unseen"] * 2 + ["house/odd"] * 2 + ["house/half"]
    tasks = ["a", "b", "c", "a", "a", "a", None, "a"]
    outcomes = outcomes_of(sources, {"task": tasks, "acc": [1.0, 0.0, 1, 1.0, 0.0, 1.0, 1.0, 0.5]})
    summary = RunSummary.load(tmp_path / "summary.json", 0)
    episodes = {name: sources.count(name) for name in dict.fromkeys(sources)}
    summary.record_evaluation("grpo", 1.0, dict.fromkeys(episodes, 0.5), episodes, outcomes)
    written = content_of(tmp_path / "summary.json")["stages"][0]
    assert written["outcomes"] == {"seen": {"a": True, "b": False, "c": True}}
    assert outcomes_of(sources, {"acc": [1.0] * 8}) == {}


def test_a_stage_that_is_evaluated_again_comes_last_and_may_keep_its_seconds(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summary = RunSummary.load(path, 0)
    summary.record_evaluation("base", 1.0, {"house/seen": 0.1}, {"house/seen": 4}, {})
    summary.record_evaluation("imitation", 12.345, {"house/seen": 0.5}, {"house/seen": 4}, {})
    summary.record_evaluation("base", None, {"house/seen": 0.2}, {"house/seen": 8}, {})
    summary.record_evaluation("elsewhere", None, {}, {}, {})
    stages = content_of(path)["stages"]
    assert [(stage["name"], stage["seconds"]) for stage in stages] == [
        ("imitation", 12.35),
        ("base", 1.0),
        ("elsewhere", 0.0),
    ]
    assert stages[1]["success"] == {"seen": 0.2}
    # A report shows them in the order in which they run.
    assert [stage.name for stage in read_summary(path).stages] == ["base", "imitation", "elsewhere"]
    assert read_summary(path).share("base", "seen") == Share(0.2, 8)


def test_a_success_that_is_no_share_does_not_stop_a_job(tmp_path: Path) -> None:
    """Without `acc`, verl's core metric is the reward; it may be missing as well."""
    path = tmp_path / "summary.json"
    success = {"house/seen": 2.5, "house/unseen": float("nan")}
    RunSummary.load(path, 0).record_evaluation("base", 1.0, success, dict.fromkeys(success, 4), {})
    assert RunSummary.load(path, 0).stages[0].success["seen"] == 2.5
    with pytest.raises(StoreError, match=r"summary of a run \(stage 'base': a share lies between 0 and 1"):
        read_summary(path)


@pytest.mark.parametrize("way", ["fork", ""])
def test_a_summary_of_version_1_is_read(tmp_path: Path, way: str) -> None:
    old = {**COLLECT, "reused": 0, "failed": 1, "faults": {"raised": 1}, "way": way, "resets": 5, "bytes": 9}
    folder = write_run(tmp_path / "run", schema=1, collect=old, sets={"world_model": old})
    summary = read_summary(folder.summary_path)
    assert summary.collect == summary.sets["world_model"]
    assert (summary.collect.restore, summary.collect.states, summary.collect.faults) == (way, 120, {"raised": 1})
    assert [stage.name for stage in summary.stages] == ["base", "world_model", "imitation", "grpo"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": "one"}',
        '{"schema": 1}',
        '{"schema": 1, "seed": 0}',
        '{"schema": 1, "seed": 0, "collect": {}, "stages": []}',
    ],
)
def test_a_broken_summary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    for read in (read_summary, lambda path: RunSummary.load(path, 0)):
        with pytest.raises(StoreError, match=r"summary\.json is not a summary of a run"):
            read(path)


@pytest.mark.parametrize(("share", "episodes"), [(1.01, 10), (-0.1, 10), (0.5, 0)])
def test_an_impossible_share_is_refused(tmp_path: Path, share: float, episodes: int) -> None:
    stage = {"name": "base", "seconds": 1, "success": {"seen": share}, "episodes": {"seen": episodes}}
    with pytest.raises(StoreError, match=r"between 0 and 1|at least one episode"):
        read_summary(write_run(tmp_path / "run", stages=[stage]).summary_path)


def test_a_share_without_its_episodes_is_refused(tmp_path: Path) -> None:
    stage = {"name": "base", "seconds": 1, "success": {"seen": 0.5}, "episodes": {}}
    with pytest.raises(StoreError, match=r"stage 'base': 'seen'"):
        read_summary(write_run(tmp_path / "run", stages=[stage]).summary_path)


def test_a_newer_summary_asks_for_an_update(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"schema 3; this verl_ee reads up to 2\. Update"):
        read_summary(write_run(tmp_path / "run", schema=3).summary_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"summary\.json cannot be read .*trainer\.default_local_dir"):
        read_summary(tmp_path / "summary.json")
