"""Whole jobs of what a user may choose besides the method: adapter, summaries as targets, agent loops, Megatron."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.jobs import ROOT, Job, run_recipe

from verl_ee.experience.store import read_branches
from verl_ee.objectives.summaries import read_summaries

pytestmark = pytest.mark.slow
LORA = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.target_modules=all-linear",
    "actor_rollout_ref.model.lora.merge=True",
)
SUMMARIES = (
    "early_experience.world_model.target=summary",
    "early_experience.world_model.writer=policy",
    "early_experience.writers.policy.kind=policy",
    "early_experience.writers.policy.max_tokens=32",
    # The tiny model seldom comes to an end.
    "early_experience.max_dropped=0.99",
)
MEGATRON = (
    "model_engine=megatron",
    "actor_rollout_ref.actor.strategy=megatron",
    "actor_rollout_ref.ref.strategy=megatron",
    "actor_rollout_ref.actor.megatron.vanilla_mbridge=True",
    "actor_rollout_ref.ref.megatron.vanilla_mbridge=True",
)
"""On top of the recipe's own settings, which are for FSDP2."""
TWO = ("trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2")
"""Two workers, each with a server."""
SAME = 0.05
"""Nats per token that servers in bfloat16 and the actor may differ in a response's log-probability."""


def test_one_adapter_goes_through_all_stages_and_learns_summaries_of_the_policy(tmp_path: Path) -> None:
    done = run_recipe(tmp_path, *LORA, *SUMMARIES)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    job = Job(tmp_path, output)
    summary = job.json("summary.json")
    assert [stage["name"] for stage in summary["stages"]] == ["base", "world_model", "imitation", "grpo"]
    _check_summaries(job)
    _check_policies(job, "adapter")
    adapter = json.loads((tmp_path / "global_step_0/actor/lora_train_meta.json").read_text())
    assert adapter["r"] == 8


@pytest.mark.parametrize("parallel", [None, "tensor", "pipeline"])
def test_megatron_trains_every_stage_and_the_servers_get_its_weights(tmp_path: Path, parallel: str | None) -> None:
    overrides = list(MEGATRON)
    if parallel is not None:
        overrides += TWO
        overrides += (
            f"actor_rollout_ref.{role}.megatron.{parallel}_model_parallel_size=2" for role in ("actor", "ref")
        )
    modules = {"PYTHONPATH": _with_tests(), "VERL_USE_EXTERNAL_MODULES": "support.megatron_cpu"}
    # verl's Megatron engine has no float32, and its config no `fsdp_config` to ask for it.
    done = run_recipe(tmp_path, *overrides, CPU_DTYPE="bfloat16", **modules)
    _check_stages(tmp_path, done.returncode, done.stdout + done.stderr)
    assert (tmp_path / "global_step_0/actor/model/huggingface/model.safetensors").exists()


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_two_workers_train_every_stage_and_two_servers_get_their_weights(tmp_path: Path, strategy: str) -> None:
    overrides = (f"actor_rollout_ref.{role}.strategy={strategy}" for role in ("actor", "ref"))
    done = run_recipe(tmp_path, *TWO, *overrides)
    _check_stages(tmp_path, done.returncode, done.stdout + done.stderr)
    assert (tmp_path / "global_step_0/actor/model_world_size_2_rank_1.pt").exists()


def _check_stages(folder: Path, returncode: int, output: str) -> None:
    assert returncode == 0, output[-5000:]
    job = Job(folder, output)
    names = [stage["name"] for stage in job.json("summary.json")["stages"]]
    assert names == ["base", "world_model", "imitation", "grpo"]
    _check_policies(job, "model")


def _check_policies(job: Job, reference: str) -> None:
    """Servers, actor and reference are one policy on GRPO's first step, and the reference stays where it was."""
    assert len(job.fingerprints) == (3 if reference == "model" else 2)
    assert len(set(job.fingerprints)) == 1
    logged = [json.loads(line)["data"] for line in (job.folder / "log.jsonl").read_text().splitlines()]
    first, second = (row for row in logged if "early_experience/reference_gap" in row)
    assert first["early_experience/reference_gap"] <= 1e-5
    assert second["early_experience/reference_gap"] > 1e-3
    assert all(row["rollout_corr/log_ppl_abs_diff"] < SAME for row in (first, second))


def _check_summaries(job: Job) -> None:
    own = job.folder / "early_experience"
    written = read_summaries(own)
    executed = {item.transition for item in read_branches(own / "store/world_model")}
    assert set(written) == executed
    kept = sum(bool(text) for text in written.values())
    assert 0 < kept == job.json("summary.json")["summarise"]["written"]


def test_demonstrations_are_played_through_the_job_s_own_loops(tmp_path: Path) -> None:
    loops = tmp_path / "loops.yaml"
    loops.write_text(json.dumps([{"name": "guessing", "_target_": "support.tool_jobs.Guessing"}]))
    rows = [_row("guessing", "Guess.", ["look", "inventory", "7"]), _row("single_turn_agent", "Say look.", ["look"])]
    path = tmp_path / "demonstrations.parquet"
    pq.write_table(pa.Table.from_pylist(rows * 8), path)
    done = run_recipe(
        tmp_path,
        f"early_experience.demonstrations={path}",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
        method="imitation",
        PYTHONPATH=_with_tests(),
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    recorded = pq.read_table(tmp_path / "early_experience/recording.parquet").to_pylist()
    assert len(recorded) == 16
    # What the game says between two guesses is read, never learned.
    assert [row["learned"] is None for row in recorded] == [False, True] * 8
    stages = [row for row in Job(tmp_path, output).rows("metrics.jsonl") if row["stage"] == "imitation"]
    learned = sum(sum(row["learned"] or [True] * len(row["target"])) for row in recorded)
    assert sum(row["imitation/tokens"] for row in stages) == learned


def _with_tests() -> str:
    return os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))


def _row(agent: str, question: str, responses: list[str]) -> dict[str, object]:
    return {
        "data_source": "test",
        "agent_name": agent,
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"number": 7},
        "expert_responses": responses,
    }
