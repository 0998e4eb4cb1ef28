"""Token ids of prompts and targets: a target ends, and foreign text is never encoded as control tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support.jobs import ROOT
from support.served_templates import odd_conversations, whole_conversation
from transformers import AutoTokenizer

from verl_ee.config import PromptConfig
from verl_ee.errors import ExampleError
from verl_ee.prompts import TextFormat
from verl_ee.trainer.rollout.tokens import control_tokens, encoder_for, end_token


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")


def test_control_tokens_are_listed_longest_first(tokenizer: Any) -> None:
    listed = control_tokens(tokenizer)
    assert {"<|im_start|>", "<|im_end|>"} <= set(listed.reserved) <= set(listed.all)
    for tokens in (listed.all, listed.reserved):
        assert [len(text) for text in tokens] == sorted(map(len, tokens), reverse=True)


def test_a_prompt_is_the_conversation_of_the_chat_template(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "look around"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(encoder_for(tokenizer, "qwen2", {}).prompt(messages)) == expected


def test_prompt_and_target_are_the_whole_conversation_whatever_they_say(tokenizer: Any) -> None:
    encoder = encoder_for(tokenizer, "qwen2", {})
    for messages, answer in odd_conversations(200):
        prompt, target = encoder.conversation(messages, answer)
        assert prompt == encoder.prompt(messages)
        assert [*prompt, *target] == whole_conversation(tokenizer, messages, answer)[: len(prompt) + len(target)]


def test_a_target_ends_once_whatever_is_written_in_it(tokenizer: Any) -> None:
    encoder = encoder_for(tokenizer, "qwen2", {})
    end = end_token(tokenizer)
    for text in ("Action: look", "Action: look<|im_end|>", "<|im_start|>user"):
        target = encoder.conversation([{"role": "user", "content": "What now?"}], text)[1]
        assert target[-1] == end
        assert target.count(end) == 1
        assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in target


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.eos_token, endless.name_or_path = None, "no such folder"
    for call in (lambda: end_token(endless), lambda: encoder_for(endless, None, {})):
        with pytest.raises(ExampleError, match="has no eos_token"):
            call()


def test_a_response_goes_on_with_a_thought_that_the_prompt_has_opened(tokenizer: Any) -> None:
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant\\n<think>\\n")
    encoder, form = encoder_for(thinking, "qwen2", {}), TextFormat(PromptConfig())
    assert tokenizer.decode(encoder.prompt([{"role": "user", "content": "x"}])).rstrip().endswith("<think>")
    for response, action in (("I could.\nAction: go", None), ("I could.\nAction: go\n</think>\nAction: look", "look")):
        ids = tokenizer.encode(response, add_special_tokens=False)
        assert form.read(encoder.text(ids)).action == action
    assert (
        encoder_for(tokenizer, "qwen2", {}).text(tokenizer.encode("Action: go", add_special_tokens=False))
        == "Action: go"
    )
