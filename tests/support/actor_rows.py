"""Encoded examples of the household, of every objective."""

from __future__ import annotations

from support import actors
from support.prompts import BARE
from transformers import AutoTokenizer

from verl_ee.envs import make
from verl_ee.experience.expert_states import expert_states
from verl_ee.prompts.text import render_outcome, render_policy, render_response, render_world_model

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
            (render_policy(states[index], BARE), render_response(step.action), "imitation"),
            (render_world_model(states[index], step.action), render_outcome(after), "world_model"),
            (render_policy(states[index], BARE), render_response(step.action, thought), "reflection"),
        )
        for messages, target, name in texts:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            encode = tokenizer.encode
            ids = encode(prompt, add_special_tokens=False), encode(target, add_special_tokens=False)
            result.append((ids[0], [*ids[1], tokenizer.eos_token_id], name))
    return result
