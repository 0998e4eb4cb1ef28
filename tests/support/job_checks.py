"""The check of a composed job: a command line that passes it, and the message of one that does not."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from support.jobs import ROOT

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.config import EarlyExperienceConfig
from verl_ee.envs import make
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.expert_files import write_experts
from verl_ee.trainer.checks.job import check_job

CPU = ("trainer.device=cpu", "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM=cpu")
"""Overrides of a job on the CPU, besides the environment variable."""
MODEL = ROOT / "examples/tiny_base/model"


def good_job(folder: Path) -> list[str]:
    """Return the overrides of a job that passes; its expert file is written into the folder."""
    env = make("verl_ee/Household-v0")
    write_experts(folder / "experts.jsonl", [env.unwrapped.expert_trajectory("train/0")])
    return [
        "+early_experience=iwm",
        "early_experience.environment.id=verl_ee/Household-v0",
        f"early_experience.experts={folder}/experts.jsonl",
        f"actor_rollout_ref.model.path={MODEL}",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={folder}/run",
        f"hydra.run.dir={folder}/hydra",
        *CPU,
    ]


def check(overrides: list[str]) -> EarlyExperienceConfig:
    """Compose a job on verl's own config, and check it."""
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return check_job(hydra.compose("ppo_trainer", overrides))


def refusal(overrides: list[str]) -> str:
    """Return the message with which a job is refused."""
    with pytest.raises(EarlyExperienceError) as caught:
        check(overrides)
    return str(caught.value)
