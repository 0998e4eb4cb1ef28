"""The stage that an evaluation belongs to, its success, and its seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support.episode_infos import early_experience, info

from verl_ee.errors import EnvError
from verl_ee.run.stage_result import StageResult
from verl_ee.run.summary import RunSummary
from verl_ee.trainer import evaluation as module
from verl_ee.trainer.episode_counts import FailureBudget
from verl_ee.trainer.evaluation import StageEvaluation

SOURCE = "house/seen"
ANY = FailureBudget(early_experience(max_failed_episodes=1.0))


@pytest.fixture
def summary(tmp_path: Path) -> RunSummary:
    return RunSummary.load(tmp_path / "summary.json", 0)


def played(evaluation: StageEvaluation, share: float) -> Callable[[], dict[str, float]]:
    """Return a validation of four episodes in which a share of the tasks succeeds."""

    def validate() -> dict[str, float]:
        infos = {"task": list("abcd"), "acc": [float(index < 4 * share) for index in range(4)]}
        evaluation.note_episodes([SOURCE] * 4, infos, {(SOURCE, task): 1 for task in "abcd"})
        return {f"val-core/{SOURCE}/acc/mean@1": share}

    return validate


def recorded(summary: RunSummary, name: str) -> StageResult:
    result = summary.stage(name)
    assert result is not None
    return result


def test_a_job_that_starts_at_the_hand_over_evaluates_the_last_stage(summary: RunSummary) -> None:
    evaluation = StageEvaluation(summary, "imitation", "grpo", ANY)
    summary.record_evaluation("imitation", 12.0, {SOURCE: 0.5}, {SOURCE: 4}, {})
    for global_step, share in ((0, 0.25), (8, 0.75)):
        evaluation.record(played(evaluation, share), global_step)
    assert [(stage.name, stage.success["seen"]) for stage in summary.stages] == [("imitation", 0.25), ("grpo", 0.75)]
    assert recorded(summary, "imitation").seconds == 12.0


def test_an_evaluation_belongs_to_the_stage_that_began_last(summary: RunSummary) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    assert evaluation.record(played(evaluation, 0.0), 0) == {f"val-core/{SOURCE}/acc/mean@1": 0.0}
    evaluation.begin("world_model")
    assert evaluation.stage == "world_model"
    evaluation.record(played(evaluation, 0.5), 0)
    assert [stage.name for stage in summary.stages] == ["base", "world_model"]
    result = recorded(summary, "world_model")
    assert result.success == {"seen": 0.5}
    assert result.episodes == {"seen": 4}
    assert result.outcomes == {"seen": {"a": True, "b": True, "c": False, "d": False}}


def test_evaluating_is_not_part_of_a_stage(summary: RunSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    evaluation = StageEvaluation(summary, "imitation", "grpo", ANY)

    def validate() -> dict[str, float]:
        nonlocal now
        now += 60.0
        return played(evaluation, 0.5)()

    for seconds in (3.0, 7.0):
        now += seconds
        evaluation.record(validate, 4)
    assert recorded(summary, "grpo").seconds == 10.0


def test_a_data_source_without_a_core_metric_has_no_success(summary: RunSummary) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    evaluation.note_episodes([SOURCE], {}, {(SOURCE, "a"): 1})
    evaluation.record(lambda: {"val-core/house/other/acc/mean@1": 1.0, f"val-aux/{SOURCE}/acc/mean@1": 1.0}, 0)
    assert math.isnan(recorded(summary, "base").success["seen"])


def test_a_data_source_may_begin_with_the_name_of_another(summary: RunSummary) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    longer = f"{SOURCE}/hard"
    evaluation.note_episodes([SOURCE, longer], {}, {(SOURCE, "a"): 1, (longer, "a"): 1})
    evaluation.record(lambda: {f"val-core/{longer}/acc/mean@1": 1.0, f"val-core/{SOURCE}/acc/mean@1": 0.25}, 0)
    assert sorted(recorded(summary, "base").success.values()) == [0.25, 1.0]


def test_an_evaluation_tells_how_many_responses_hold_no_action(
    summary: RunSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    unseen = "house/unseen"
    rows = [info(turns=10, no_action=0.5), info(turns=2, no_action=0.0), info(turns=4, no_action=0.25)]

    def validate() -> dict[str, float]:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        sources = [SOURCE, SOURCE, unseen]
        evaluation.note_episodes(sources, columns, {(source, str(n)): 1 for n, source in enumerate(sources)})
        return {f"val-core/{source}/acc/mean@1": 0.0 for source in sources}

    evaluation.record(validate, 0)
    assert recorded(summary, "base").no_action == {"seen": 5 / 12, "unseen": 0.25}
    assert RunSummary.load(summary.path, 0) == summary
    assert "; responses without an action: seen 41.7 %, unseen 25.0 %" in capsys.readouterr().err
    # Episodes of another agent loop say nothing about actions.
    evaluation.record(played(evaluation, 0.5), 0)
    assert recorded(summary, "base").no_action == {}


def test_an_evaluation_tells_how_many_environments_failed(
    summary: RunSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    unseen = "house/unseen"
    rows = [info(), info(), info(), info(env_error="it hung"), {**dict.fromkeys(info()), "acc": 1.0}]
    sources = [SOURCE, unseen, unseen, unseen, "shop/sold"]

    def validate() -> dict[str, float]:
        columns = {key: [row[key] for row in rows] for key in info()}
        evaluation.note_episodes(sources, columns, {(source, str(n)): 1 for n, source in enumerate(sources)})
        return {f"val-core/{source}/acc/mean@1": 0.0 for source in sources}

    evaluation.record(validate, 0)
    assert recorded(summary, "base").env_failed == {"seen": 0.0, "unseen": 1 / 3}
    assert RunSummary.load(summary.path, 0) == summary
    assert "; environments that failed: unseen 33.3 %" in capsys.readouterr().err


def test_a_reward_function_may_have_a_key_that_verl_has_too(summary: RunSummary) -> None:
    """verl then appends both numbers of an episode to the same list, and reads one for each episode."""
    evaluation = StageEvaluation(summary, "imitation", "base", ANY)
    infos = {"reward": [0.0, 1.0, 0.5, 0.5], "acc": [0.0, 1.0], "task": ["a", "b"]}

    def validate() -> dict[str, float]:
        evaluation.note_episodes([SOURCE] * 2, infos, {(SOURCE, task): 1 for task in "ab"})
        return {f"val-core/{SOURCE}/acc/mean@1": 0.5}

    evaluation.record(validate, 0)
    assert recorded(summary, "base").success == {"seen": 0.5}
    assert recorded(summary, "base").outcomes == {"seen": {"a": False, "b": True}}


def test_an_evaluation_whose_environments_fail_is_not_recorded(summary: RunSummary) -> None:
    evaluation = StageEvaluation(summary, "imitation", "base", FailureBudget(early_experience()))
    rows = [info(env_error="a wall fell"), info(env_error="another"), *[info()] * 8]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    with pytest.raises(EnvError, match=r"2 of 10 episodes of the evaluation of base .*a wall fell"):
        evaluation.record(lambda: evaluation.note_episodes([SOURCE] * 10, columns, {}) or {}, 0)
    assert summary.stages == ()
