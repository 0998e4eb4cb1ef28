"""Parts that are encoded in workers are those that one process makes, in their order, with the same refusals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import ray
from support.jobs import ROOT
from support.stage_worlds import NO_LIMITS
from transformers import AutoTokenizer

from verl_ee.errors import ExampleError
from verl_ee.experience.progress import read_plugin_line
from verl_ee.objectives.files.example_tables import Part, PartEncoder
from verl_ee.objectives.rows import Row
from verl_ee.prompts.format import Message
from verl_ee.trainer.data import encoding_workers
from verl_ee.trainer.data.encoding_workers import EncodingWorkers
from verl_ee.trainer.rollout.tokens import encoder_for


@pytest.fixture(scope="module")
def encode() -> PartEncoder:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    refuses = "{% if messages[-1].content == 'bad' %}{{ raise_exception('refused') }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    return PartEncoder(encoder_for(tokenizer, "qwen2", {}), NO_LIMITS)


def parts(count: int) -> list[Part]:
    return [
        Part([Row(({"role": "user", "content": f"{part} {n}"},), "go", "imitation", f"{part}, {n}") for n in range(3)])
        for part in range(count)
    ]


@pytest.fixture
def at_once(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started with the first part."""
    monkeypatch.setattr(encoding_workers, "ALONE", -1.0)


def test_workers_make_what_one_process_makes(at_once: None, encode: PartEncoder) -> None:
    many = parts(30)
    expected = list(encode(many))
    assert len(expected) == len(many)
    assert list(EncodingWorkers(encode)(many)) == expected


def test_what_takes_no_time_starts_no_worker(encode: PartEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EncodingWorkers, "_in_workers", None)
    many = parts(4)
    assert list(EncodingWorkers(encode)(many)) == list(encode(many))


def test_a_row_that_cannot_be_rendered_is_named(at_once: None, encode: PartEncoder) -> None:
    broken = Part([Row(({"role": "user", "content": "bad"},), "go", "imitation", "number 7")])
    with pytest.raises(ExampleError) as alone:
        list(encode([broken]))
    with pytest.raises(ExampleError) as raised:
        list(EncodingWorkers(encode)([*parts(4), broken]))
    assert str(raised.value) == str(alone.value)
    assert "number 7" in str(raised.value)


def test_what_a_worker_cannot_encode_is_encoded_here(
    at_once: None, encode: PartEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    here, conversation = os.getpid(), encode.encoder.conversation

    def known_here(messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        if os.getpid() != here:
            raise ImportError("no module 'own_tokenizer'")
        return conversation(messages, answer)

    fragile = replace(encode, encoder=replace(encode.encoder, conversation=known_here))
    many = parts(30)
    assert list(EncodingWorkers(fragile)(many)) == list(encode(many))
    warnings = [line.text for line in map(read_plugin_line, capsys.readouterr().err.splitlines()) if line]
    assert all("could not encode a part (" in text and "own_tokenizer" in text for text in warnings)
    # Each worker is tried once.
    assert 1 <= len(warnings) <= int(ray.cluster_resources()["CPU"])
    assert warnings[-1].endswith("; 0 workers go on")
