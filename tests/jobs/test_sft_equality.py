"""Our imitation stage beside verl's own SFT trainer, trained on the Parquet that we export for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support import actors, sft_trainer
from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

from verl_ee.cli.main import main
from verl_ee.config import StageConfig
from verl_ee.envs import make
from verl_ee.experience.expert_files import load_experts, write_experts
from verl_ee.objectives.examples import Example, encode
from verl_ee.objectives.rows import imitation_rows
from verl_ee.trainer.rollout.tokens import encoder_for

ID = "verl_ee/Household-v0"
ROWS, BATCH, EPOCHS, LR = 48, 8, 2, 2e-3
STEPS = EPOCHS * ROWS // BATCH
WARMUP = 3
SCHEDULES: dict[str, tuple[StageConfig, tuple[str, ...]]] = {
    "constant": (
        StageConfig(objectives=("imitation",), epochs=EPOCHS, lr=LR, batch_size=BATCH, schedule="constant"),
        (f"trainer.total_training_steps={STEPS}", "optim.lr_scheduler_type=constant"),
    ),
    # verl counts the warm-up from its step 0 or 1, ours ends on the full rate: with one step more of each they agree.
    "cosine": (
        StageConfig(objectives=("imitation",), epochs=EPOCHS, lr=LR, batch_size=BATCH, warmup_ratio=WARMUP / STEPS),
        (
            f"trainer.total_training_steps={STEPS + 1}",
            "optim.lr_scheduler_type=cosine",
            f"optim.lr_warmup_steps={WARMUP + 1}",
            "optim.zero_indexed_step=False",
        ),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_trainer.closed_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `verl-ee export` writes for verl's SFT trainer, with the expert file beside it."""
    folder = tmp_path_factory.mktemp("export")
    env: Any = make(ID).unwrapped
    write_experts(folder / "experts.jsonl", [env.expert_trajectory(f"train/{index}") for index in range(16)])
    experts = ("--env", ID, "--experts", str(folder / "experts.jsonl"))
    assert main(["export", *experts, "--format", "verl-sft", "--out", str(folder)]) == 0
    return folder / "imitation.parquet"


def run_sft(parquet: Path, model: Path, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train with verl's stock command and return what it logged, by step."""
    log = folder / "log.jsonl"
    command = [
        *sft_trainer.command(model, parquet, folder, BATCH, 4, LR),
        *(f"data.train_max_samples={ROWS}", f"trainer.total_epochs={EPOCHS}", "trainer.logger=[file]", *overrides),
    ]
    env = os.environ | sft_trainer.ENVIRON | {"VERL_FILE_LOGGER_PATH": str(log)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return [json.loads(line)["data"] for line in log.read_text().splitlines()]


def replayed(examples: list[Example]) -> list[list[Example]]:
    """Return the batches of verl's SFT trainer: each epoch, torch's permutation of its number."""
    batches = []
    for epoch in range(EPOCHS):
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(epoch)).tolist()
        batches += [[examples[index] for index in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
    return batches


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_equal_those_of_verls_sft_trainer(parquet: Path, model: Path, tmp_path: Path, schedule: str) -> None:
    stage, overrides = SCHEDULES[schedule]
    theirs = run_sft(parquet, model, tmp_path, *overrides)

    encoder = encoder_for(AutoTokenizer.from_pretrained(model), "qwen2", {})
    experts = load_experts(parquet.with_name("experts.jsonl"))
    batches = replayed(list(encode(imitation_rows(experts.trajectories, 8, TOLD_FORM), encoder))[:ROWS])
    rows = [[(list(e.prompt), list(e.target), e.objective) for e in batch] for batch in batches]
    (ours,) = actors.run("supervised_stage", 1, tmp_path / "ours", batches=rows, stage=stage)

    assert len(ours) == len(theirs) == STEPS
    assert [sum(map(len, batch)) for batch in batches] == [step["train/global_tokens"] for step in theirs]
    assert ours[-1]["loss"] < 0.8 * ours[0]["loss"]
    # The scheduler of ours does not go on behind the last step.
    assert [step["lr"] for step in ours[:-1]] == pytest.approx([step["train/lr"] for step in theirs[:-1]])
    assert [step["loss"] for step in ours] == pytest.approx([step["train/loss"] for step in theirs], abs=1e-4)
