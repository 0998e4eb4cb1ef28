"""A look at the prompt of a job: whether it suits the environment, and tells the policy how to answer."""

from __future__ import annotations

from dataclasses import replace

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.envs import ExpertTrajectory, suggested_format
from verl_ee.experience.expert_states import expert_states
from verl_ee.prompts.format import PromptFormat


def format_hint(config: EarlyExperienceConfig) -> str:
    """Return a hint if the environment suggests another prompt format than the job has, else an empty text."""
    suggested, used = suggested_format(config.environment.id), config.prompt.format
    if suggested is None or suggested == used:
        return ""
    return (
        f"{config.environment.id} suggests prompts of the format {suggested!r}, and this job has {used!r}: "
        f"{ROOT}.prompt.format={suggested} takes the suggestion."
    )


def prompt_warning(config: EarlyExperienceConfig, form: PromptFormat, trajectory: ExpertTrajectory) -> str:
    """Return a warning if the first prompt of a trajectory does not say how to answer, else an empty text.

    A policy that has learned the form of an answer needs no such words, so this is no error.
    """
    told = replace(trajectory, instruction=trajectory.instruction or "")
    state = expert_states(told, config.history_length)[0]
    if any(form.answer_mark in message["content"] for message in form.policy_prompt(state)):
        return ""
    listed = state.admissible_actions is not None
    otherwise = "a response that is not just a listed action" if listed else "a response"
    return (
        f"prompts do not say how to answer: nothing in them names {form.answer_mark!r}, and without it {otherwise} "
        f"holds no action. {ROOT}.prompt.system and {ROOT}.prompt.instruction are for that, unless the "
        "policy has learned it."
    )
