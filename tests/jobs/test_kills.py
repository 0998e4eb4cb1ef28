"""A whole job that is killed in every stage, and goes on with the same command."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.jobs import METHODS, ROOT, SMALL, Job, recipe_environment, run_recipe

SAVES = "early_experience.save_freq=3"
KILLS = (
    "collect: ",
    "step:2 - early_experience/world_model/loss",
    "step:5 - early_experience/world_model/loss",
    "imitation:   0%",
    "/imitation/loss",
    "hand-over: policy",
    "training/global_step:1",
    "Training Progress:  50%",
)
"""The job is killed when it prints one of these: in collecting, twice in each stage, in the hand-over and twice in
GRPO."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job of `job`, killed at every point of `KILLS` and repeated each time."""
    folder = tmp_path_factory.mktemp("killed")
    for text in KILLS:
        _kill_at(folder, text)
    done = run_recipe(folder, SAVES)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return Job(folder, done.stdout + done.stderr)


def _kill_at(folder: Path, text: str) -> None:
    command = ["bash", str(ROOT / "recipes/household/run.sh"), *SMALL, *METHODS["iwm"], SAVES]
    process = subprocess.Popen(
        command,
        env=recipe_environment(folder, "iwm"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "".join(lines)[-5000:]


@pytest.mark.slow
def test_data_and_weights_equal_those_of_an_undisturbed_run(job: Job, killed: Job) -> None:
    for table in ("transitions", "branches"):
        expected, resumed = (
            pq.read_table(folder / f"early_experience/store/world_model/{table}.parquet")
            for folder in (job.folder, killed.folder)
        )
        assert resumed.equals(expected)
    expected, resumed = (
        torch.load(folder / "global_step_0/actor/model_world_size_1_rank_0.pt", weights_only=False)
        for folder in (job.folder, killed.folder)
    )
    for name, value in expected.items():
        assert torch.equal(resumed[name].to_local(), value.to_local()), name


@pytest.mark.slow
def test_every_step_is_counted_once(job: Job, killed: Job) -> None:
    expected, resumed = ([(row["stage"], row["step"]) for row in each.rows("metrics.jsonl")] for each in (job, killed))
    assert resumed == expected
    losses, again = ([row.get("imitation/loss") for row in each.rows("metrics.jsonl")] for each in (job, killed))
    assert again == losses
    assert [stage["name"] for stage in killed.json("summary.json")["stages"]] == [
        *("base", "world_model", "imitation", "grpo")
    ]


@pytest.mark.slow
def test_grpo_goes_on_where_it_was_saved(killed: Job) -> None:
    assert "Resuming from" in killed.output
    assert "global_step_1" in killed.output
    assert not any(f"early_experience/{stage}/loss" in killed.output for stage in ("world_model", "imitation"))
