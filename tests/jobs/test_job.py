"""The whole road in one verl job: branch, world model, imitation, hand-over, GRPO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from support.jobs import ROOT, Job, run_recipe
from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

from verl_ee.experience.expert_files import load_experts
from verl_ee.experience.store import read_branches


def test_summary_lists_every_stage(job: Job) -> None:
    summary = job.json("summary.json")
    assert [stage["name"] for stage in summary["stages"]] == ["base", "world_model", "imitation", "grpo"]
    for stage in summary["stages"]:
        assert stage["episodes"] == {"seen": 16, "unseen": 16}
        assert all(0.0 <= share <= 1.0 for share in stage["success"].values())
        assert set(stage["outcomes"]) == set(stage["no_action"]) == {"seen", "unseen"}
        for split, tasks in stage["outcomes"].items():
            assert len(tasks) == 16
            assert stage["success"][split] == sum(tasks.values()) / 16
    assert len({frozenset(stage["outcomes"]["seen"]) for stage in summary["stages"]}) == 1
    states = sum(len(t.steps) for t in load_experts(job.folder / "data/experts.jsonl").trajectories)
    assert summary["collect"]["states"] == states
    assert summary["collect"]["mismatches"] == 0
    assert set(summary["checkpoints"]) == {"hand_over", "grpo"}


def test_store_holds_every_branch_with_provenance(job: Job) -> None:
    trajectories = load_experts(job.folder / "data/experts.jsonl").trajectories
    outcomes = read_branches(job.folder / "early_experience/store/world_model")
    expected = sum(1 + min(3, len(s.admissible_actions) - 1) for t in trajectories for s in t.steps)
    assert len(outcomes) == expected == job.json("summary.json")["collect"]["branches"]
    for outcome in outcomes:
        step = trajectories[outcome.ref.trajectory].steps[outcome.ref.step]
        assert (outcome.outcome.action == step.action) == (outcome.proposer == "expert")
    metadata = pq.read_schema(job.folder / "early_experience/store/world_model/transitions.parquet").metadata
    assert metadata[b"verl_ee.schema"] == b"3"
    assert json.loads(metadata[b"verl_ee.environment"])[0] == "verl_ee/Household-v0"


def test_metrics_have_a_step_key_of_their_own(job: Job) -> None:
    rows = job.rows("metrics.jsonl")
    stages = [row for row in rows if row["stage"] != "grpo"]
    assert [row["step"] for row in stages] == list(range(1, len(stages) + 1))
    for row in stages:
        name = row["stage"]
        assert row[f"{name}/tokens"] > 0
        assert row[f"{name}/loss"] > 0
        assert 0 <= row[f"{name}/token_accuracy"] <= 1
    grpo = [row for row in rows if row["stage"] == "grpo"]
    assert [row["step"] for row in grpo] == [1, 2]
    assert all(row["early_experience/optimizer_steps"] >= 1 for row in grpo)
    assert all(0 <= row[f"early_experience/{share}"] <= 1 for row in grpo for share in ("no_action", "refused"))
    assert all(row["early_experience/env_failed"] == 0 for row in grpo)
    logged = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    assert sum("early_experience/world_model/loss" in row["data"] for row in logged) == sum(
        row["stage"] == "world_model" for row in stages
    )


def test_hand_over_is_a_verl_checkpoint_that_rotation_keeps(job: Job) -> None:
    actor = job.folder / "global_step_0/actor"
    kept = {path.name for path in actor.iterdir()}
    later = {path.name for path in (job.folder / "global_step_2/actor").iterdir()}
    assert kept == later
    assert (job.folder / "global_step_0/data.pt").exists()
    # max_actor_ckpt_to_keep=1: verl's own rotation took the first GRPO step, not the hand-over.
    assert not (job.folder / "global_step_1/actor").exists()
    optimizer = torch.load(actor / "optim_world_size_1_rank_0.pt", weights_only=False)
    assert optimizer["state"] == {}
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(1e-4)


def test_reference_of_the_first_step_is_the_handed_over_policy(job: Job) -> None:
    gaps = [row["early_experience/reference_gap"] for row in job.rows("metrics.jsonl") if row["stage"] == "grpo"]
    assert gaps[0] <= 1e-5
    assert gaps[1] > 1e-3
    before, after, reference = job.fingerprints
    assert before == after == reference


def test_prompts_of_training_equal_prompts_of_rollouts(job: Job) -> None:
    """The first turns that evaluation dumped, against the rendering that imitation is trained on."""
    from verl_ee.envs import make
    from verl_ee.prompts.state import EpisodeHistory
    from verl_ee.trainer.rollout.tokens import encoder_for

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    encoder = encoder_for(tokenizer, "qwen2", {})
    env = make("verl_ee/Household-v0")
    expected = set()
    for split in ("seen", "unseen"):
        for index in range(16):
            observation, info = env.reset(options={"task": f"{split}/{index}"})
            state = EpisodeHistory(info["task"], 8).state(observation, info["admissible_actions"])
            expected.add(tokenizer.decode(encoder.prompt(TOLD_FORM.policy_prompt(state)), skip_special_tokens=True))
    assert expected <= {row["input"] for row in _validation(job.folder / "validation")}


def test_resumes_at_grpo_without_repeating_a_stage(job: Job, tmp_path: Path) -> None:
    before = (job.folder / "early_experience/store/world_model/transitions.parquet").stat().st_mtime_ns
    done = run_recipe(job.folder)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    assert "Resuming from" in output
    assert "world_model:" not in output
    assert (job.folder / "early_experience/store/world_model/transitions.parquet").stat().st_mtime_ns == before


def test_report_of_a_real_run(job: Job) -> None:
    command = [sys.executable, "-m", "verl_ee.cli", "report", str(job.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith(f"run: {job.folder}, seed ")
    assert Path(lines[1].removeprefix("plot: ")).stat().st_size > 10_000
    assert lines[2] == f"summary: {job.folder}/early_experience/summary.json"
    assert [line.split()[0] for line in lines[-4:]] == ["base", "world_model", "imitation", "grpo"]


@pytest.mark.slow
def test_stock_verl_resumes_the_hand_over(job: Job, tmp_path: Path) -> None:
    """Without our plugin: GRPO from `global_step_0` with verl's single-turn agent, and equal greedy completions."""
    frame = pd.read_parquet(job.folder / "data/val.parquet")
    frame["agent_name"] = "single_turn_agent"
    frame.to_parquet(tmp_path / "val.parquet")
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):\n    return 0.0\n"
    )
    script = (ROOT / "recipes/household/run.sh").read_text()
    stock = script.replace('+early_experience="$METHOD" ', "").replace('"${EARLY[@]}" ', "")
    command = stock[stock.index("python -m verl.trainer.main_ppo") :]
    assert "early" not in command.lower()
    path = ROOT / "recipes/household/.stock.sh"
    path.write_text(stock)
    try:
        env = os.environ | {"OUT": str(tmp_path / "run"), "EPISODES": "16", "VERL_USE_EXTERNAL_PLUGINS": "verl_ee_cpu"}
        arguments = [
            *("bash", str(path), f"data.val_files={tmp_path}/val.parquet", f"data.train_files={tmp_path}/val.parquet"),
            *("trainer.resume_mode=resume_path", f"trainer.resume_from_path={job.folder}/global_step_0"),
            *(f"trainer.validation_data_dir={tmp_path}/validation", "trainer.total_training_steps=1"),
            *(
                "data.train_batch_size=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                "actor_rollout_ref.rollout.n=2",
            ),
            *(f"reward.custom_reward_function.path={reward}", "reward.custom_reward_function.name=compute_score"),
            *("trainer.save_freq=-1", "trainer.test_freq=-1"),
        ]
        done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=1200)
    finally:
        path.unlink()
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    ours = {row["input"]: row["output"] for row in _validation(job.folder / "validation", step=1)}
    theirs = {row["input"]: row["output"] for row in _validation(tmp_path / "validation", step=0)}
    assert len(theirs) == 32
    assert all(ours[prompt] == completion for prompt, completion in theirs.items())


def _validation(folder: Path, step: int | None = None) -> list[dict[str, object]]:
    files = folder.glob("*.jsonl") if step is None else [folder / f"{step}.jsonl"]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
