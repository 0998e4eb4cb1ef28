"""Prompts and answers with tokenizers of every kind: a prompt is tokenized once, and nothing else comes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.served_templates import odd_conversations, whole_conversation
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from verl_ee.errors import ExampleError
from verl_ee.prompts import Message
from verl_ee.trainer.rollout.chat_template import ChatTemplate
from verl_ee.trainer.rollout.tokens import encoder_for

CONTROL = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS: dict[str, Callable[[Tokenizer], None]] = {
    "metaspace": lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Metaspace()),
    "metaspace_first": lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first")),
    "prepended": lambda made: setattr(
        made, "normalizer", normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    ),
    "byte_level": lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "normalized": lambda made: setattr(
        made, "normalizer", normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    ),
}
TOKENS: dict[str, dict[str, bool]] = {
    "plain": {"normalized": False},
    "rstrip": {"normalized": False, "rstrip": True},
    "lstrip": {"normalized": False, "lstrip": True},
    "in_normalized_text": {"normalized": True},
}


def tokenizer_of(parts: str, tokens: str) -> Any:
    """Return a small tokenizer of a kind, with ChatML as its template."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    PARTS[parts](made)
    made.decoder = decoders.Fuse()
    made.train_from_iterator(
        [f"{message['content']} {answer}" for chat, answer in odd_conversations(50) for message in chat]
        + ["system user assistant"] * 20,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False),
    )
    made.add_special_tokens([AddedToken(token, special=True, **TOKENS[tokens]) for token in CONTROL])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=AddedToken(CONTROL[1], **TOKENS[tokens]))
    wrapped.chat_template = CHATML
    return wrapped


# Where texts are prepended, such tokens are looked for with what is prepended, and not found inside a text.
@pytest.mark.parametrize(
    ("parts", "tokens"),
    [pair for pair in itertools.product(PARTS, TOKENS) if pair != ("prepended", "in_normalized_text")],
)
def test_prompt_and_answer_are_the_whole_conversation(parts: str, tokens: str) -> None:
    tokenizer = tokenizer_of(parts, tokens)
    encoder, refused = encoder_for(tokenizer, "llama", {}), 0
    for messages, answer in odd_conversations(100):
        whole, asked = whole_conversation(tokenizer, messages, answer), encoder.prompt(messages)
        if whole[: len(asked)] == asked:
            prompt, target = encoder.conversation(messages, answer)
            assert (prompt, target) == (asked, whole[len(asked) : len(asked) + len(target)])
        else:
            # The end of the prompt and the begin of the answer make one token.
            refused += 1
            with pytest.raises(ExampleError, match="in another way once it is answered"):
                encoder.conversation(messages, answer)
    assert refused < 100


def test_a_prompt_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("metaspace", "plain")
    encoder, tokenized = encoder_for(tokenizer, "llama", {}), list[str]()
    messages: list[Message] = [{"role": "user", "content": "a long prompt " * 20}]
    encoder.conversation(messages, "look")
    original = type(tokenizer)._encode_plus

    def counted(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        tokenized.append(str(text))
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    encoder.conversation(messages, "look")
    assert sum("a long prompt" in text for text in tokenized) == 1
    assert any(text.startswith(CONTROL[0]) and "look" in text for text in tokenized)


def test_a_template_that_wants_a_system_message_is_served() -> None:
    tokenizer = tokenizer_of("metaspace", "plain")
    refuses = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuses + CHATML
    chat: list[Message] = [{"role": "system", "content": "Act."}, {"role": "user", "content": "What now?"}]
    tokens = [token for part in encoder_for(tokenizer, "llama", {}).conversation(chat, "look") for token in part]
    assert tokens == whole_conversation(tokenizer, chat, "look")[: len(tokens)]


@dataclass
class Other:
    """A builder that makes prompts of its own, as verl has for some models."""

    tokenizer: Any

    def build_initial_tokens(self, messages: list[Message]) -> list[int]:
        own = self.tokenizer.encode("another beginning", add_special_tokens=False)
        asked = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [*own, *asked]


def test_a_prompt_that_the_template_does_not_make_is_refused() -> None:
    tokenizer = tokenizer_of("metaspace", "plain")
    template = ChatTemplate.of(tokenizer, Other(tokenizer), {}, None)
    with pytest.raises(ExampleError, match="renders a prompt in another way once it is answered: token 0"):
        template.conversation([{"role": "user", "content": "What now?"}], "look")
