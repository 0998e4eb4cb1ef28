"""Texts that the policy writes: the prompts that its servers get, and the responses that become a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.stage_worlds import ENCODER, World, letters, text_of

from verl_ee.config import WriterConfig
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations, writer_prompt
from verl_ee.objectives.summaries import read_summaries, summary_requests, write_summaries
from verl_ee.prompts.text import Message
from verl_ee.trainer.rollout.writer import PolicyWriter

WINDOW = 8


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty states, four branches each, one of them refused."""
    return World(tmp_path, 4, 2, 1)


@dataclass
class Client:
    """Stands for verl's client of rollout servers: it answers with what it was asked, up to its end token or not."""

    cut: int = 10_000
    requested: list[str] = field(default_factory=list)
    sampled: list[dict[str, Any]] = field(default_factory=list)

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.requested.append(text_of(prompt_ids))
        self.sampled.append(sampling_params)
        ids = [*map(ord, f"Text {len(self.requested)}."), 0]
        return SimpleNamespace(token_ids=ids if len(prompt_ids) < self.cut else ids[:-1])


class Tokenizer:
    eos_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return text_of([number for number in ids if number])


def policy(client: Client, max_prompt: int | None = None) -> PolicyWriter:
    config = WriterConfig(kind="policy", temperature=0.3, max_tokens=77)
    return PolicyWriter(client, ENCODER, Tokenizer(), config, {"top_p": 0.8}, WINDOW, max_prompt)


def texts(writer: PolicyWriter, requests: Sequence[Any]) -> list[str]:
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
    rationales = write_rationales(world.folder, states, writer, (), 0.0)
    assert [(item.text, item.writer) for item in rationales] == [("Text 4.", "policy"), ("Text 5.", "policy")]
    assert client.requested == [
        *(flat(item.prompt) for item in requests),
        *(flat(writer_prompt(item)) for item in states),
    ]
    assert client.sampled == [{"top_p": 0.8, "temperature": 0.3, "max_tokens": 77}] * 5


def test_what_is_cut_off_and_what_is_too_long_to_ask_is_empty(world: World) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:3]
    requests[1] = replace(requests[1], outcome=replace(requests[1].outcome, observation="A long page. " * 100))
    assert texts(policy(Client(cut=1000)), requests) == ["Text 1.", "", "Text 3."]
    client = Client()
    assert texts(policy(client, max_prompt=1000), requests) == ["Text 1.", "", "Text 2."]
    assert len(client.requested) == 2


def test_the_policy_is_asked_through_the_encoder_of_its_rollouts(world: World) -> None:
    encoded: list[list[Message]] = []
    encoder = Encoder(lambda messages: encoded.append(messages) or [1], list)  # type: ignore[func-returns-value]
    (request, *_) = summary_requests(world.trajectories, world.branches)
    writer = PolicyWriter(Client(), encoder, Tokenizer(), WriterConfig(kind="policy"), {}, WINDOW)
    list(writer.write([request]))
    assert encoded == [request.prompt]
