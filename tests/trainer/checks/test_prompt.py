"""The look at a job's prompt: it warns where nothing says how to answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.prompts import BARE, TOLD

from verl_ee.config import EarlyExperienceConfig, PromptConfig
from verl_ee.config.checks import parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.prompts.text import TextFormat
from verl_ee.trainer.checks.prompt import prompt_warning

EXPERT = Household().expert_trajectory("train/0")
SILENT = replace(EXPERT, steps=tuple(replace(step, admissible_actions=None) for step in EXPERT.steps))


def config(prompt: PromptConfig) -> EarlyExperienceConfig:
    stage = {"objectives": ["imitation"], "epochs": 1, "lr": 1e-5, "batch_size": 4}
    return parse(
        {
            "method": "imitation",
            "environment": {"id": "verl_ee/Household-v0"},
            "experts": "experts.jsonl",
            "stages": {"imitation": stage},
            "prompt": prompt.model_dump(),
        }
    )


def warning(prompt: PromptConfig, trajectory: ExpertTrajectory) -> str:
    return prompt_warning(config(prompt), TextFormat(prompt), trajectory)


def test_the_default_says_how_to_answer() -> None:
    assert warning(TOLD, EXPERT) == warning(TOLD, SILENT) == ""


@pytest.mark.parametrize("prompt", [BARE, PromptConfig(system="", instruction="Do something.")])
def test_a_prompt_that_does_not_is_told_with_the_keys(prompt: PromptConfig) -> None:
    listed, silent = warning(prompt, EXPERT), warning(prompt, SILENT)
    for told in (listed, silent):
        assert "'Action:'" in told
        assert "early_experience.prompt.instruction" in told
    assert "not just a listed action" in listed
    assert "not just a listed action" not in silent


def test_either_text_may_say_it() -> None:
    for prompt in (PromptConfig(system="Answer with Action: ..."), PromptConfig(instruction="Begin with Action:")):
        assert warning(prompt, SILENT) == ""
