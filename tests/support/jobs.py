"""The household recipe at a size of seconds, and a finished job as its files and its output."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = (
    "early_experience.max_turns=5",
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.use_kl_loss=True",
    # Old log-probabilities of the actor, so that they can be compared with the reference's.
    "algorithm.rollout_correction.bypass_mode=False",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=32768",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=1",
    "trainer.logger=[console,file]",
)

WORLD_MODEL = "early_experience.collect.world_model.k=3"
METHODS = {
    "iwm": (WORLD_MODEL, "early_experience.stages.imitation.epochs=1"),
    "imitation": ("early_experience.stages.imitation.epochs=1",),
    "sr": ("early_experience.stages.reflection.epochs=1",),
    "iwm_sr": (WORLD_MODEL, "early_experience.stages.reflection.epochs=1"),
}
"""What makes each value of the flag a matter of seconds."""


@dataclass(frozen=True)
class Job:
    """A finished job: its folder and all that it printed."""

    folder: Path
    output: str

    def json(self, name: str) -> Any:
        return json.loads((self.folder / "early_experience" / name).read_text())

    def rows(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "early_experience" / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def fingerprints(self) -> list[str]:
        """Hashes in the log's line of the hand-over: policy on both sides, each of all workers, and a reference."""
        line = next(line for line in self.output.splitlines() if "hand-over: policy" in line)
        return re.findall(r"\b[0-9a-f]{12}(?:\+[0-9a-f]{12})*\b", line)


def run_recipe(
    folder: Path, *overrides: str, method: str = "iwm", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the household recipe at a size of seconds."""
    env = recipe_environment(folder, method) | environment
    command = ["bash", str(ROOT / "recipes/household/run.sh"), *SMALL, *METHODS[method], *overrides]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)


def recipe_environment(folder: Path, method: str) -> dict[str, str]:
    """Return the environment of a recipe at a size of seconds."""
    return os.environ | {
        "METHOD": method,
        "OUT": str(folder),
        "DEMOS": "6",
        "EPISODES": "16",
        "HF_HUB_OFFLINE": "1",
        "VERL_FILE_LOGGER_PATH": str(folder / "log.jsonl"),
    }
