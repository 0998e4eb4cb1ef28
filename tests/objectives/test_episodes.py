"""Whole episodes as one sequence: rows, token ids, and formats and templates that rewrite past turns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from support.jobs import ROOT
from transformers import AutoTokenizer

from verl_ee.config import PromptConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_rows import episode_rows
from verl_ee.objectives.episode_tokens import episode_tokens, turn_delta
from verl_ee.objectives.examples import encode
from verl_ee.objectives.rows import imitation_rows
from verl_ee.prompts.formats import prompt_format
from verl_ee.trainer.rollout.tokens import encoder_for

MODEL = ROOT / "examples/tiny_base/model"
REACT = prompt_format(PromptConfig(format="react"))


def expert(number: int = 0) -> ExpertTrajectory:
    played = Household().expert_trajectory(f"train/{number}")
    thoughts = [f"I think of {index}." if index % 2 else None for index in range(len(played.steps))]
    steps = [replace(step, thought=thought) for step, thought in zip(played.steps, thoughts, strict=True)]
    return replace(played, steps=tuple(steps))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return encoder_for(tokenizer, "qwen2", {})


def test_an_episode_is_the_chat_of_its_last_turn() -> None:
    trajectory = expert()
    (row,) = episode_rows([trajectory], REACT)
    *_, last = imitation_rows([trajectory], None, REACT)
    assert (row.messages, row.turns, row.provenance) == (last.messages, "all", "trajectory 0")
    assert sum(message["role"] == "assistant" for message in row.messages) == len(trajectory.steps)


def test_an_episode_ends_where_the_task_is_solved() -> None:
    trajectory = expert()
    solved = tuple(replace(step, solved=index >= 2) for index, step in enumerate(trajectory.steps))
    (row,) = episode_rows([replace(trajectory, steps=solved)], REACT)
    assert sum(message["role"] == "assistant" for message in row.messages) == 2
    everything = tuple(replace(step, solved=True) for step in trajectory.steps)
    assert list(episode_rows([replace(trajectory, steps=everything)], REACT)) == []


def test_learned_tokens_are_the_answers_of_all_turns(tokenizer: Any, encoder: Encoder) -> None:
    """Against the template's text, cut at its own marks by hand."""
    trajectory = expert()
    (example,) = encode(episode_rows([trajectory], REACT), encoder)
    (row,) = episode_rows([trajectory], REACT)
    text = tokenizer.apply_chat_template(row.messages, tokenize=False)
    assert tokenizer.decode([*example.prompt, *example.target]) == text.removesuffix("\n")
    answers = [part.partition("<|im_end|>")[0] + "<|im_end|>" for part in text.split("<|im_start|>assistant\n")[1:]]
    assert example.learned is not None
    learned = [token for token, own in zip(example.target, example.learned, strict=True) if own]
    assert tokenizer.decode(learned) == "".join(answers)
    assert len(answers) == len(trajectory.steps)
    assert example.longest_answer == max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers)


def test_an_episode_has_the_tokens_of_its_turns(encoder: Encoder) -> None:
    trajectory = expert(1)
    (example,) = encode(episode_rows([trajectory], REACT), encoder)
    turns = list(encode(imitation_rows([trajectory], None, REACT), encoder))
    whole = (*example.prompt, *example.target)
    for turn in turns:
        assert whole[: len(turn)] == (*turn.prompt, *turn.target)
    assert len(turns[-1]) == len(whole)
    assert sum(map(bool, example.learned or ())) == sum(len(turn.target) for turn in turns)


def test_what_lies_between_two_answers_is_the_templates_own(tokenizer: Any, encoder: Encoder) -> None:
    trajectory = expert()
    first, second = expert_states(trajectory, None)[:2]
    answer = REACT.response(trajectory.steps[0].action, trajectory.steps[0].thought)
    end, added = turn_delta(encoder, REACT.policy_prompt(first), answer, REACT.policy_prompt(second))
    seen = REACT.policy_prompt(second)[-1]["content"]
    expected = f"\n<|im_start|>user\n{seen}<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.decode([end]), tokenizer.decode(added)) == ("<|im_end|>", expected)


@pytest.mark.parametrize("name", ["text", "tagged"])
def test_a_format_that_shows_the_whole_state_in_every_turn_is_refused(name: str) -> None:
    form = prompt_format(PromptConfig(format=name))
    with pytest.raises(ExampleError, match=r"step 1: the prompt format changes past turns, .*samples=turn"):
        list(episode_rows([expert()], form))


def test_a_format_that_hides_past_thoughts_is_refused() -> None:
    form = prompt_format(PromptConfig(format="react", thoughts_in_history=False))
    with pytest.raises(ExampleError, match="step 2: the prompt format changes past turns"):
        list(episode_rows([expert()], form))


def test_a_template_that_rewrites_past_turns_is_refused_with_the_first_token(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last and m['role'] == 'assistant' %}Now: {% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (row,) = episode_rows([expert()], REACT)
    encoder = encoder_for(changed, "qwen2", {})
    with pytest.raises(ExampleError, match=r"rewrites past turns: token \d+ of .* becomes .*samples=turn") as raised:
        episode_tokens(encoder, row.messages)
    before, after = str(raised.value).split(" becomes ")
    assert "Now:" in before
    assert "Now:" not in after
