"""The full job with each method besides the world model's, which `test_job` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.jobs import METHODS, Job, run_recipe

from verl_ee.experience.expert_files import load_experts
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.rationales import read_rationales

STAGES = {
    "imitation": ["imitation"],
    "sr": ["reflection"],
    "iwm_sr": ["world_model", "reflection"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"iwm"}))
def test_a_job_of_every_method_goes_from_start_to_grpo(method: str, tmp_path: Path) -> None:
    done = run_recipe(tmp_path, method=method)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    job = Job(tmp_path, done.stdout + done.stderr)
    summary = job.json("summary.json")
    assert [stage["name"] for stage in summary["stages"]] == ["base", *STAGES[method], "grpo"]
    assert (tmp_path / "global_step_0/actor").exists()
    rows = [row for row in job.rows("metrics.jsonl") if row["stage"] != "grpo"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == STAGES[method]
    if "sr" in method:
        _check_reflection(job, rows)


def _check_reflection(job: Job, rows: list[dict[str, object]]) -> None:
    trajectories = load_experts(job.folder / "data/experts.jsonl").trajectories
    outcomes = read_branches(job.folder / "early_experience/store/reflection")
    proposed = [item for item in outcomes if item.proposer != "expert"]
    assert {item.proposer for item in proposed} <= {"policy", "admissible"}
    assert any(item.proposer == "policy" for item in proposed)
    for item in proposed:
        step = trajectories[item.ref.trajectory].steps[item.ref.step]
        # `unlisted=replace`: whatever was tried is one of the listed actions, and never the expert's.
        assert step.admissible_actions is not None
        assert item.outcome.action in set(step.admissible_actions) - {step.action}
    reflections = read_rationales(job.folder / "early_experience")
    assert len(reflections) == sum(len(trajectory.steps) for trajectory in trajectories)
    executed = {item.transition for item in outcomes}
    assert all(set(item.transitions) <= executed for item in reflections)
    gates = job.json("summary.json")["reflect"]["gates"]
    assert gates["accepted"] == sum(item.accepted for item in reflections) > 0
    learned = [row for row in rows if row["stage"] == "reflection"]
    assert any("reflection/loss" in row for row in learned)
    assert any("imitation/loss" in row for row in learned)
