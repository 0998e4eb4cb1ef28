"""Real tokenizers and chat templates: training equals what the template makes of a conversation, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.jobs import ROOT
from support.real_tokenizers import MODELS, Served, fetch, load
from support.served_templates import odd_conversations, problem, table, whole_conversation

from verl_ee.prompts import Message
from verl_ee.prompts.formats import FORMATS
from verl_ee.trainer.rollout.tokens import control_tokens, encoder_for

pytestmark = pytest.mark.slow
REQUIRED = {"qwen2_5", "qwen3", "llama3_1", "llama3_2", "gemma3", "gptoss"}
ASKED: list[Message] = [{"role": "user", "content": "What now?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    fetch(folder)
    return folder


def tokenizer_of(folder: Path, name: str) -> tuple[Any, Served]:
    model = next(model for model in MODELS if model.template == name)
    return load(folder, model), model


@pytest.mark.parametrize("template", sorted(REQUIRED))
def test_a_template_serves_every_format(folder: Path, template: str) -> None:
    tokenizer, model = tokenizer_of(folder, template)
    assert {name: problem(tokenizer, model, name) for name in FORMATS} == dict.fromkeys(FORMATS, "")


@pytest.mark.parametrize("template", sorted(REQUIRED))
def test_odd_texts_are_encoded_as_the_template_s_whole_conversation(folder: Path, template: str) -> None:
    tokenizer, model = tokenizer_of(folder, template)
    encoder = encoder_for(tokenizer, model.model_type, {})
    for messages, answer in odd_conversations(100):
        tokens = [token for part in encoder.conversation(messages, answer) for token in part]
        assert tokens == whole_conversation(tokenizer, messages, answer)[: len(tokens)]


def test_the_table_of_the_docs_is_what_the_command_prints(folder: Path) -> None:
    assert table(folder) in (ROOT / "docs/prompts.md").read_text()


def test_qwen3_s_empty_thought_is_learned_where_the_prompt_does_not_have_it(folder: Path) -> None:
    tokenizer, model = tokenizer_of(folder, "qwen3")
    scaffold = "<think>\n\n</think>\n\n"
    for thinking, in_prompt in ((True, False), (False, True)):
        encoder = encoder_for(tokenizer, model.model_type, {"enable_thinking": thinking})
        prompt, target = (
            tokenizer.decode(encoder.prompt(ASKED)),
            tokenizer.decode(encoder.conversation(ASKED, "Action: look")[1]),
        )
        assert prompt.endswith(scaffold) == in_prompt
        assert target == ("" if in_prompt else scaffold) + "Action: look<|im_end|>"


def test_qwen3_s_thought_is_made_of_its_own_tokens(folder: Path) -> None:
    tokenizer, model = tokenizer_of(folder, "qwen3")
    target = encoder_for(tokenizer, model.model_type, {}).conversation(ASKED, "<think>I should search.</think>")[1]
    own = [tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "</think>")]
    assert [token for token in target if token in own] == own


@pytest.mark.parametrize("template", ["gemma3", "qwen3"])
def test_html_of_a_page_is_text(folder: Path, template: str) -> None:
    tokens = control_tokens(tokenizer_of(folder, template)[0])
    page = "<table><tr><td>1</td></tr></table>\n\n<b>bold</b>"
    assert tokens.neutral(page) == page
    assert {"gemma3": "<end_of_turn>", "qwen3": "<think>"}[template] in tokens.all


def test_only_the_final_channel_of_a_harmony_response_is_read(folder: Path) -> None:
    tokenizer, model = tokenizer_of(folder, "gptoss")
    response = (
        "<|channel|>analysis<|message|>Action: jump<|end|><|start|>assistant"
        "<|channel|>final<|message|>Action: look<|return|>"
    )
    encoder = encoder_for(tokenizer, model.model_type, {})

    def read(text: str) -> str:
        return encoder.text(tokenizer.encode(text, add_special_tokens=False))

    assert read(response) == "Action: look"
    assert read(response.replace("final<|message|>", "final <|constrain|>json<|message|>")) == "Action: look"
    # It was cut off before it came to an answer.
    assert read(response.partition("<|end|>")[0]) == ""
    assert read("Action: look<|return|>") == "Action: look"


@pytest.mark.parametrize("template", ["llama3_2", "gptoss"])
def test_a_template_with_a_clock_sees_the_day_of_the_run(folder: Path, template: str) -> None:
    tokenizer, model = tokenizer_of(folder, template)
    texts = [
        tokenizer.decode(encoder_for(tokenizer, model.model_type, {}, day).prompt(ASKED))
        for day in ("2024-07-26", "2031-01-02")
    ]
    assert any(shown in texts[0] for shown in ("26 Jul 2024", "2024-07-26"))
    assert any(shown in texts[1] for shown in ("02 Jan 2031", "2031-01-02"))


def test_a_template_without_a_system_role_shows_it_to_the_user(folder: Path) -> None:
    tokenizer, model = tokenizer_of(folder, "gemma")
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, *ASKED]
    text = tokenizer.decode(encoder_for(tokenizer, model.model_type, {}).prompt(messages))
    assert "<start_of_turn>user\nBe brief.\n\nWhat now?<end_of_turn>" in text
