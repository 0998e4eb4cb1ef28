"""Answers of an agent loop that differ from those of the chat template are told with the first token."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig
from support.tool_jobs import END, config  # noqa: F401
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from verl_ee.prompts.format import Message
from verl_ee.trainer.rollout.recording.loop_answers import difference_line

MESSAGES: list[Message] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def tokenizer(config: DictConfig) -> Any:
    return AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)


def outputs(*parts: tuple[list[int], bool]) -> list[AgentLoopOutput]:
    """An output that is only read, and one with these parts, which are learned or not."""
    ids = [token for tokens, _ in parts for token in tokens]
    mask = [int(learned) for tokens, learned in parts for _ in tokens]
    whole = AgentLoopOutput(prompt_ids=[1], response_ids=ids, response_mask=mask, metrics=AgentLoopMetrics())
    return [whole.model_copy(update={"response_mask": [0] * len(ids)}), whole]


def test_an_equal_answer_is_not_told(config: DictConfig, tokenizer: Any) -> None:
    answer = tokenizer.encode("Hello." + END)
    loop = outputs(([5, 6], False), (answer, True), ([7], False), ([8], True))
    assert difference_line(config, tokenizer, MESSAGES, loop, "Hello.") == ""


def test_the_first_token_that_differs_is_told(config: DictConfig, tokenizer: Any) -> None:
    answer = tokenizer.encode("Hello." + END)
    content = "{{ message['content'] }}"
    scaffold = "{% if message['role'] == 'assistant' %}<{% endif %}"
    assert content in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(content, scaffold + content)
    line = difference_line(config, tokenizer, MESSAGES, outputs((answer, True)), "Hello.")
    assert line.startswith(
        f"Token 0 of the first answer is {tokenizer.decode(answer[:1])!r} in the agent loop, and '<' in"
    )


def test_a_missing_end_is_told(config: DictConfig, tokenizer: Any) -> None:
    answer = tokenizer.encode("Hello.")
    line = difference_line(config, tokenizer, MESSAGES, outputs((answer, True)), "Hello.")
    assert f"Token {len(answer)} of the first answer is none in the agent loop, and '{END}' in the chat" in line
