"""The functions of a job's tokenizer and chat template, as far as anything outside the trainer needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from verl_ee.prompts.format import Message

EncodePrompt = Callable[[Sequence[Message]], list[int]]
EncodeConversation = Callable[[Sequence[Message], str], tuple[list[int], list[int]]]
Neutralise = Callable[[Iterable[Message]], list[Message]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Encoder:
    """Functions that turn messages and targets into token ids.

    Attributes:
        prompt: encodes messages, with the very function of the rollouts: prompts are equal token for token.
        conversation: encodes messages and the answer to them, apart; the answer has its end-of-turn token.
        neutral: breaks control tokens in messages that hold texts of an environment, and have not been rendered by a
            format that does so.
        text: returns the text of a response, without control tokens and what belongs to them.
        ends: tokens that end a turn.
    """

    prompt: EncodePrompt
    conversation: EncodeConversation
    neutral: Neutralise
    text: Decode
    ends: frozenset[int] = frozenset()
