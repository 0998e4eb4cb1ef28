"""The chat template on a job's own data: a job is refused where training would differ from its rollouts."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from support.jobs import ROOT
from transformers import AutoTokenizer

from verl_ee.config import EarlyExperienceConfig, Objective, parse
from verl_ee.envs.household.env import Household
from verl_ee.errors import ConfigError
from verl_ee.prompts.formats import FORMATS
from verl_ee.prompts.text import TextFormat
from verl_ee.trainer.checks.conversations import check_conversations

MODEL = ROOT / "examples/tiny_base/model"
JOB: DictConfig = OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(MODEL)}}, "data": {}})
EXPERTS = [Household().expert_trajectory(f"train/{number}") for number in range(3)]
OBJECTIVES: tuple[Objective, ...] = ("imitation", "reflection", "world_model")
TURN = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def config(**prompt: object) -> EarlyExperienceConfig:
    return parse({**keys(), "prompt": prompt})


def episode_config(**prompt: object) -> EarlyExperienceConfig:
    episode = {"samples": "episode", "history_length": None, "max_turn_tokens": 64}
    return parse({**keys(), **episode, "prompt": prompt})


def keys() -> dict[str, object]:
    stage = {"objectives": ["imitation"], "epochs": 1, "lr": 1e-5, "batch_size": 4}
    environment = {"id": "verl_ee/Household-v0"}
    return {"method": "m", "environment": environment, "experts": "e.jsonl", "stages": {"imitation": stage}}


def with_template(tokenizer: Any, turn: str, begin: str = "<|im_start|>assistant\n") -> Any:
    changed = copy.deepcopy(tokenizer)
    end = "{% if add_generation_prompt %}" + begin + "{% endif %}"
    changed.chat_template = "{% for message in messages %}" + turn + "{% endfor %}" + end
    return changed


@pytest.mark.parametrize("name", FORMATS)
def test_the_tiny_base_is_served_in_every_format(tokenizer: Any, name: str) -> None:
    check_conversations(JOB, config(format=name), tokenizer, EXPERTS, OBJECTIVES)


def test_open_instructions_are_tried_without_them(tokenizer: Any) -> None:
    check_conversations(JOB, config(), tokenizer, [replace(EXPERTS[0], instruction=None)], OBJECTIVES)


def test_a_prompt_that_changes_with_the_answer_is_refused_with_the_first_token(tokenizer: Any) -> None:
    counts = with_template(tokenizer, "{{ messages | length }}" + TURN)
    with pytest.raises(
        ConfigError, match=r"imitation, trajectory 0, step 0: .* token 0 is '2' in the prompt and '3' in the conv"
    ):
        check_conversations(JOB, config(), counts, EXPERTS, OBJECTIVES)


def test_a_template_that_ends_no_turn_is_refused_with_the_tokens_that_do(tokenizer: Any) -> None:
    endless = with_template(tokenizer, TURN.replace("<|im_end|>", ""))
    with pytest.raises(ConfigError, match=r"does not end a turn: .*generation_config\.json"):
        check_conversations(JOB, config(), endless, EXPERTS, OBJECTIVES)


def test_a_template_that_changes_an_action_is_refused(tokenizer: Any) -> None:
    other = "(message['content'].replace(' 1', ' 2') if message['role'] == 'assistant' else message['content'])"
    shouting = with_template(tokenizer, TURN.replace("message['content']", other))
    with pytest.raises(ConfigError, match="makes another answer of 'Action: "):
        check_conversations(JOB, config(), shouting, EXPERTS, OBJECTIVES)


def test_rows_that_are_not_written_yet_are_tried_too(tokenizer: Any) -> None:
    """A template that hides thoughts shows only when there is one."""
    turn = TURN.replace("message['content']", "message['content'].split('leads on.')[-1].lstrip()")
    hiding = with_template(tokenizer, turn)
    check_conversations(JOB, config(), hiding, EXPERTS, ["imitation", "world_model"])
    with pytest.raises(ConfigError, match="reflection, trajectory 0, step 0: the chat template makes another answer"):
        check_conversations(JOB, config(), hiding, EXPERTS, ["reflection"])


def test_an_outcome_that_is_read_as_an_action_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextFormat, "outcome", lambda _, observation: f"Action: {observation}")
    with pytest.raises(ConfigError, match=r"world_model, trajectory 0, step 0: .* is read as the action"):
        check_conversations(JOB, config(), tokenizer, EXPERTS, OBJECTIVES)


def test_episodes_are_served_in_a_chat_that_grows(tokenizer: Any) -> None:
    check_conversations(JOB, episode_config(format="react"), tokenizer, EXPERTS, OBJECTIVES)


def test_an_experts_episode_that_the_template_rewrites_is_named(tokenizer: Any) -> None:
    thoughts = [replace(step, thought="It leads on.") for step in EXPERTS[1].steps]
    experts = [EXPERTS[0], replace(EXPERTS[1], steps=tuple(thoughts))]
    shown = "(message['content'] if loop.last else message['content'].split('leads on.')[-1])"
    forgetting = with_template(tokenizer, TURN.replace("message['content']", shown))
    check_conversations(JOB, config(format="react"), forgetting, experts, ["imitation"])
    with pytest.raises(ConfigError, match=r"samples=episode: imitation, trajectory 1: the chat template rewrites past"):
        check_conversations(JOB, episode_config(format="react"), forgetting, experts, ["imitation"])
