"""Responses of an expert, as tokens that the model could have generated."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import asyncio
from typing import Any

import pytest
from omegaconf import DictConfig
from support.tool_jobs import END, call, config  # noqa: F401
from transformers import AutoTokenizer

from verl_ee.errors import ExampleError
from verl_ee.trainer.rollout.recording.recording_client import RecordingClient


@pytest.fixture(scope="module")
def tokenizer(config: DictConfig) -> Any:
    return AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)


def answer(config: DictConfig, tokenizer: Any, text: str, ends: set[int], **sampling: Any) -> list[int]:
    client = RecordingClient(config, tokenizer, [text], ends)
    return asyncio.run(client.generate("one", prompt_ids=[5], sampling_params=sampling)).token_ids


def test_a_response_ends_where_the_model_would_stop(config: DictConfig, tokenizer: Any) -> None:
    end, close = tokenizer.convert_tokens_to_ids([END, "</tool_call>"])
    written = tokenizer(call(1))["input_ids"]
    assert answer(config, tokenizer, call(1), {end}) == [*written, end]
    assert answer(config, tokenizer, call(1) + END, {end}) == [*written, end]
    assert answer(config, tokenizer, call(1), {end, close}) == written
    assert answer(config, tokenizer, call(1), {end}, stop_token_ids=[close]) == written
    for text, stops in ((f"Hello.{END} More.", []), (call(1) + call(2), [close])):
        with pytest.raises(
            ExampleError, match=r"expert_responses\[0\] goes on after '<.*>', where the model would stop"
        ):
            answer(config, tokenizer, text, {end}, stop_token_ids=stops)


def test_the_first_problem_is_kept(config: DictConfig, tokenizer: Any) -> None:
    client = RecordingClient(config, tokenizer, [], set())
    for _ in range(2):
        with pytest.raises(ExampleError, match="asks for turn"):
            asyncio.run(client.generate("one", prompt_ids=[5], sampling_params={}))
    assert client.calls == 2
    assert client.problem is not None
    assert "asks for turn 1, but expert_responses has 0" in client.problem
