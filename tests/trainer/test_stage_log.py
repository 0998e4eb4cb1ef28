"""The log of a run's stages: rows of GRPO and mid-training, and the lines that tell of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from verl_ee.experience import progress
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.cost import Cost
from verl_ee.experience.progress import PluginLine, read_plugin_line
from verl_ee.run.metrics import read_metrics
from verl_ee.run.stage_result import StageResult
from verl_ee.trainer.stage_log import StageLog, collected_line, evaluated_line, trained_line


class Backend:
    """A backend of verl's tracking that keeps what it gets."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.axes: dict[str, str] = {}

    def log(self, data: Mapping[str, object], step: int) -> None:
        self.steps.append(step)

    def define_metric(self, name: str, step_metric: str = "") -> None:
        self.axes[name] = step_metric

    def axis(self, metric: str) -> str:
        """Return the axis of a metric as wandb finds it: the metric's own, that of a pattern, or the run's step."""
        return next((axis for name, axis in self.axes.items() if fnmatch(metric, name) and axis), "")


class Tracking:
    """verl's tracking with two backends."""

    def __init__(self) -> None:
        self.logger = {"console": Backend(), "wandb": Backend()}
        self.exit_code: int | None = None

    def log(self, data: Mapping[str, object], step: int) -> None:
        for backend in self.logger.values():
            backend.log(data, step)

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


def written(capsys: pytest.CaptureFixture[str]) -> list[PluginLine]:
    return [line for line in map(read_plugin_line, capsys.readouterr().err.splitlines()) if line is not None]


def test_grpo_shows_its_score_and_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    log = StageLog(Tracking(), tmp_path / "metrics.jsonl")
    log.begin_grpo(2)
    log.log(data={"critic/score/mean": 0.25, "text": "no number"}, step=1)
    log.log(data={"critic/score/mean": 0.5}, step=2)
    log.finish()
    first, *bars, last = written(capsys)
    assert first == ("INFO", "grpo begins: 2 steps")
    assert all(line.level == "PROGRESS" for line in bars)
    assert any("1/2" in line.text and "score=0.250" in line.text for line in bars)
    assert last == ("INFO", "grpo: 2 steps, score 0.500 (0 s)")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"stage": "grpo", "step": 1, "critic/score/mean": 0.25},
        {"stage": "grpo", "step": 2, "critic/score/mean": 0.5},
    ]


def test_a_resumed_grpo_goes_on_with_its_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    log = StageLog(Tracking(), tmp_path / "metrics.jsonl", mid_training_steps=7, grpo_steps=3)
    log.begin_grpo(5)
    log.log(data={}, step=4)
    bars = [line.text for line in written(capsys) if line.level == "PROGRESS"]
    assert "3/5" in bars[0]
    assert "4/5" in bars[-1]


def test_finishing_ends_the_bar_and_verls_tracking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = Tracking()
    log = StageLog(tracking, tmp_path / "metrics.jsonl")
    log.begin_grpo(3)
    log.finish(exit_code=1)
    assert tracking.exit_code == 1
    assert "grpo: 3 steps" not in [line.text for line in written(capsys)]


def test_wandb_counts_grpo_behind_mid_training(tmp_path: Path) -> None:
    tracking = Tracking()
    log = StageLog(tracking, tmp_path / "metrics.jsonl", mid_training_steps=4)
    log.log_stage("imitation", {"imitation/loss": 1.0})
    log.log(data={}, step=1)
    log.log(data={}, step=2, backend=["console"])
    assert tracking.logger["wandb"].steps == [5, 6]
    assert tracking.logger["console"].steps == [5, 1, 2]


def test_wandb_has_an_axis_for_the_stages_and_another_for_grpo(tmp_path: Path) -> None:
    tracking = Tracking()
    log = StageLog(tracking, tmp_path / "metrics.jsonl")
    log.log_stage("imitation", {"imitation/loss": 1.0, "lr": 1e-5})
    grpo = [f"early_experience/{name}" for name in ("optimizer_steps", "reference_gap", "no_action", "env_failed")]
    log.log(data=dict.fromkeys(grpo, 0.0), step=1)
    wandb = tracking.logger["wandb"]
    stages = ["early_experience/imitation/loss", "early_experience/lr"]
    assert [wandb.axis(name) for name in stages] == ["early_experience/step"] * 2
    assert [wandb.axis(name) for name in grpo] == [""] * 4
    assert "early_experience/step" in wandb.axes
    assert tracking.logger["console"].axes == {}


def test_a_stage_that_begins_again_takes_its_steps_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = StageLog(Tracking(), path)  # type: ignore[arg-type]
    for stage in ("world_model", "world_model", "imitation"):
        log.log_stage(stage, {"loss": 1.0})
    log.take_back(1)
    log.log_stage("imitation", {"loss": 2.0})
    rows = read_metrics(path).mid_training
    assert [(row.stage, row.step, row.values["loss"]) for row in rows] == [
        *(("world_model", 1, 1.0), ("world_model", 2, 1.0), ("imitation", 3, 2.0))
    ]


def test_lines_of_stages() -> None:
    result = CollectionResult(states=5, branches=20, reused=2, lost=1, failed=3, cost=Cost(seconds=12.4))
    assert collected_line("world_model", result) == (
        "collect world_model: 5 states, 20 branches, 2 reused, 1 states lost, 3 actions failed; "
        "alternatives: 0 of 0 possible (12 s)"
    )
    assert trained_line("imitation", 9, {"imitation": "0.312"}, 61.7) == "imitation: 9 steps, imitation 0.312 (62 s)"
    stage = StageResult("grpo", 1.0, {"seen": 0.453125, "unseen": 0.5}, {"seen": 64, "unseen": 32})
    assert evaluated_line(stage, 6) == "grpo step 6, success: seen 45.3 % of 64, unseen 50.0 % of 32 episodes"
    assert evaluated_line(stage) == "grpo, success: seen 45.3 % of 64, unseen 50.0 % of 32 episodes"
    told = replace(stage, no_action={"unseen": 0.0, "seen": 0.0312})
    assert evaluated_line(told, 6) == (
        "grpo step 6, success: seen 45.3 % of 64, unseen 50.0 % of 32 episodes; "
        "responses without an action: seen 3.1 %, unseen 0.0 %"
    )
    failed = replace(stage, env_failed={"seen": 0.0, "unseen": 0.0625})
    assert evaluated_line(failed) == (
        "grpo, success: seen 45.3 % of 64, unseen 50.0 % of 32 episodes; environments that failed: unseen 6.2 %"
    )
