"""Encoded examples of the household, of every objective."""

from __future__ import annotations

from support import actors
from support.prompts import BARE_FORM
from transformers import AutoTokenizer

from verl_ee.envs import make
from verl_ee.experience.expert_states import expert_states

Rows = list[tuple[list[int], list[int], str]]


def household_rows() -> Rows:
    """Five examples of each objective, of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(actors.MODEL)
    env = make("verl_ee/Household-v0")
    trajectory = env.unwrapped.expert_trajectory("train/4")
    states = expert_states(trajectory, 8)
    result: Rows = []
    for index in range(5):
        step = trajectory.steps[index]
        after = trajectory.steps[index + 1].observation
        thought = f"If I {step.action}, I will see this. {after}"
        texts = (
            (BARE_FORM.policy_prompt(states[index]), BARE_FORM.response(step.action), "imitation"),
            (BARE_FORM.world_model_prompt(states[index], step.action), BARE_FORM.outcome(after), "world_model"),
            (BARE_FORM.policy_prompt(states[index]), BARE_FORM.response(step.action, thought), "reflection"),
        )
        for messages, target, name in texts:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            encode = tokenizer.encode
            ids = encode(prompt, add_special_tokens=False), encode(target, add_special_tokens=False)
            result.append((ids[0], [*ids[1], tokenizer.eos_token_id], name))
    return result
