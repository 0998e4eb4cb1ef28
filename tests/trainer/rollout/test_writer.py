"""Texts that the policy writes: the prompts that its servers get, and the responses that become a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from support.stage_worlds import ENCODER, World, letters, text_of

from verl_ee.config import WriterConfig
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations, writer_prompt
from verl_ee.objectives.summaries import read_summaries, summary_requests, write_summaries
from verl_ee.objectives.writing.text_writing import NoText
from verl_ee.prompts.text import Message
from verl_ee.trainer.rollout.writer import PolicyWriter

WINDOW = 8


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty states, four branches each, one of them refused."""
    return World(tmp_path, 4, 2, 1)


MAX_TOKENS, CONTEXT = 20, 100_000
EOS, IM_END, TURN_END = 0, 1, 2
"""Tokens that end a response: the tokenizer's, one of its control tokens, and one that it knows nothing of."""


@dataclass
class Client:
    """Stands for verl's client of rollout servers: it numbers its answers.

    Args:
        cut: prompts that are longer get an answer without an end, which fills all its tokens.
        end: token that ends the others.
        stop_reason: as verl's vLLM servers say it, whether or not a response has an end.
    """

    cut: int = 100_000
    end: int | None = EOS
    stop_reason: str | None = "completed"
    requested: list[str] = field(default_factory=list)
    sampled: list[dict[str, Any]] = field(default_factory=list)

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.requested.append(text_of(prompt_ids))
        self.sampled.append(sampling_params)
        ids = [*map(ord, f"Text {len(self.requested)}."), *([] if self.end is None else [self.end])]
        ids = ids if len(prompt_ids) < self.cut else [*ids[:-1], *[ord("x")] * MAX_TOKENS][:MAX_TOKENS]
        return SimpleNamespace(token_ids=ids, stop_reason=self.stop_reason)


class Tokenizer:
    """It skips its eos alone, and has another control token."""

    all_special_tokens: ClassVar[list[str]] = ["<eos>"]
    added_tokens_decoder: ClassVar[dict[int, Any]] = {IM_END: SimpleNamespace(content="<|im_end|>", special=True)}

    def __init__(self, eos_token_id: int | None = EOS) -> None:
        self.eos_token_id = eos_token_id

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|im_end|>": IM_END}

    def convert_ids_to_tokens(self, ids: int) -> str:
        return {EOS: "<eos>", IM_END: "<|im_end|>"}.get(ids, chr(ids))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(self.convert_ids_to_tokens(number) for number in ids if number not in (EOS, TURN_END))


READING = replace(ENCODER, text=lambda ids: Tokenizer().decode(ids, skip_special_tokens=True))


def policy(client: Any, context: int = CONTEXT, eos: int | None = EOS) -> PolicyWriter:
    config = WriterConfig(kind="policy", temperature=0.3, max_tokens=MAX_TOKENS)
    return PolicyWriter(client, READING, Tokenizer(eos), config, {"top_p": 0.8}, WINDOW, context)


def texts(writer: PolicyWriter, requests: Sequence[Any]) -> list[str | NoText]:
    written = {request.key: text for request, text in writer.write(requests)}
    return [written[request.key] for request in requests]


def flat(messages: list[Message]) -> str:
    return text_of(letters(messages))


def test_one_writer_writes_summaries_and_rationales(world: World) -> None:
    client = Client()
    writer = policy(client)
    requests = summary_requests(world.trajectories, world.branches)[:3]
    summaries = write_summaries(world.folder, requests, writer, WriterConfig(kind="policy"), 0.0)
    assert [(item.text, item.writer) for item in summaries] == [(f"Text {number}.", "policy") for number in (1, 2, 3)]
    assert list(read_summaries(world.folder).values()) == ["Text 1.", "Text 2.", "Text 3."]
    states = situations(world.trajectories, world.branches, 8)[:2]
    rationales = write_rationales(world.folder, states, writer, ())
    assert [(item.text, item.writer) for item in rationales] == [("Text 4.", "policy"), ("Text 5.", "policy")]
    assert client.requested == [
        *(flat(item.prompt) for item in requests),
        *(flat(writer_prompt(item)) for item in states),
    ]
    assert client.sampled == [{"top_p": 0.8, "temperature": 0.3, "max_tokens": MAX_TOKENS}] * 5


def test_what_is_cut_off_and_what_is_too_long_to_ask_gives_no_text(world: World) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:3]
    requests[1] = replace(requests[1], outcome=replace(requests[1].outcome, observation="A long page. " * 100))
    cut = NoText(f"cut off at max_tokens={MAX_TOKENS}", "Text 2.xxxxxxxxxxxxx")
    assert texts(policy(Client(cut=1000)), requests) == ["Text 1.", cut, "Text 3."]
    client = Client()
    first, unasked, last = texts(policy(client, context=1001), requests)
    assert (first, last) == ("Text 1.", "Text 2.")
    length = len(letters(requests[1].prompt))
    assert unasked == NoText(f"its prompt has {length} tokens, and the servers take 1000")
    assert len(client.requested) == 2


@dataclass
class Endless:
    """Stands for a vLLM server of verl under a model that ends nothing: it shortens responses to fit the context.

    Args:
        context: tokens of a prompt and its response together.
        end: last token of each response.
    """

    context: int
    end: int = ord("x")

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        room = self.context - len(prompt_ids)
        if room < 1:
            raise ValueError("need at least 1 token of headroom")
        ids = [ord("x")] * (min(sampling_params["max_tokens"], room) - 1)
        return SimpleNamespace(token_ids=[*ids, self.end], stop_reason="completed")


@pytest.mark.parametrize("room", [0, 1, 5, MAX_TOKENS - 1, MAX_TOKENS])
def test_what_the_rest_of_the_context_cuts_off_is_no_text(room: int, world: World) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:1]
    length = len(letters(requests[0].prompt))
    context = length + room
    (written,) = texts(policy(Endless(context), context), requests)
    if room == 0:
        assert written == NoText(f"its prompt has {length} tokens, and the servers take {length - 1}")
    elif room < MAX_TOKENS:
        assert written == NoText(f"cut off at max_model_len={context}", "x" * room)
    else:
        assert written == NoText(f"cut off at max_tokens={MAX_TOKENS}", "x" * MAX_TOKENS)
    if room:
        assert texts(policy(Endless(context, EOS), context), requests) == ["x" * (min(room, MAX_TOKENS) - 1)]


@pytest.mark.parametrize("eos", [EOS, 999, None], ids=["right", "wrong", "none"])
@pytest.mark.parametrize("end", [EOS, IM_END, TURN_END, None], ids=["eos", "control token", "unknown token", "none"])
def test_a_response_that_is_shorter_than_it_may_be_has_ended_whatever_ends_it(
    end: int | None, eos: int | None, world: World
) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:2]
    assert texts(policy(Client(end=end), eos=eos), requests) == ["Text 1.", "Text 2."]


@pytest.mark.parametrize(("end", "whole"), [(EOS, True), (IM_END, True), (ord("."), False)])
def test_a_response_that_fills_all_its_tokens_has_ended_with_an_end_token_alone(
    end: int, whole: bool, world: World
) -> None:
    @dataclass
    class Full(Client):
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            return SimpleNamespace(token_ids=[*[ord("x")] * (MAX_TOKENS - 1), end], stop_reason="completed")

    written = texts(policy(Full()), summary_requests(world.trajectories, world.branches)[:1])
    all_but_the_last = "x" * (MAX_TOKENS - 1)
    cut = NoText(f"cut off at max_tokens={MAX_TOKENS}", f"{all_but_the_last}.")
    assert written == [all_but_the_last if whole else cut]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("length", f"cut off at max_tokens={MAX_TOKENS}"),
        ("aborted", "its server gave the response up"),
        ("abort", "its server gave the response up"),
    ],
)
def test_a_response_that_its_server_broke_off_gives_no_text(reason: str, cause: str, world: World) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:1]
    for end in (None, EOS, IM_END):
        assert texts(policy(Client(end=end, stop_reason=reason)), requests) == [NoText(cause, "Text 1.")]
    assert texts(policy(Client(end=None, stop_reason="stop")), requests) == ["Text 1."]


def test_the_policy_is_asked_through_the_encoder_of_its_rollouts(world: World) -> None:
    encoded: list[list[Message]] = []
    encoder = Encoder(lambda messages: encoded.append(messages) or [1], list, list, READING.text)  # type: ignore[func-returns-value]
    (request, *_) = summary_requests(world.trajectories, world.branches)
    writer = PolicyWriter(Client(), encoder, Tokenizer(), WriterConfig(kind="policy"), {}, WINDOW, CONTEXT)
    list(writer.write([request]))
    assert encoded == [request.prompt]
