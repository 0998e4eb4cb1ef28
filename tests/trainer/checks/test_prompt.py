"""The look at a job's prompt: whether it says how to answer, and has the format that the environment suggests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.prompts import BARE, TOLD

from verl_ee.config import EarlyExperienceConfig, PromptConfig
from verl_ee.config.checks import parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.prompts.text import TextFormat
from verl_ee.trainer.checks.prompt import format_hint, prompt_warning

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


def test_a_job_is_told_of_the_format_that_its_environment_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_hint(config(TOLD)) == ""
    monkeypatch.setattr(Household, "prompt_format", "react", raising=False)
    hint = format_hint(config(TOLD))
    assert "verl_ee/Household-v0 suggests prompts of the format 'react'" in hint
    assert "early_experience.prompt.format=react" in hint
    assert format_hint(config(PromptConfig(format="react"))) == ""


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
