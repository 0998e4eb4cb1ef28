"""The tokens that a server may take: counted over all repetitions of a command, and held below the limit."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support.rationale_requests import (
    LEDGER,
    MAX_TOKENS,
    TOKENS_PER_ANSWER,
    _key,  # noqa: F401
    check_whole,
    kept_refs,
    prompt_of,
    server,  # noqa: F401
    states,  # noqa: F401
    write_missing,
)
from support.scripted_server import READ, WRITTEN, Endpoint, completion

from verl_ee.errors import ExampleError, StoreError, WriteError
from verl_ee.objectives.reflection.situations import Situation


@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("limit", [1, 100, 550, 1050])
def test_spending_ends_less_than_one_request_above_the_limit(
    limit: int, concurrency: int, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    with pytest.raises(ExampleError) as caught:
        write_missing(server, states, tmp_path, concurrency=concurrency, token_limit=limit)
    spent = server.served.total() * TOKENS_PER_ANSWER
    assert limit <= spent < limit + TOKENS_PER_ANSWER
    assert f"{spent:,} tokens" in str(caught.value)
    assert f"early_experience.writers.server.endpoint.token_limit={limit:,}" in str(caught.value)
    assert f"{12 - spent // TOKENS_PER_ANSWER} of 12 texts are not written yet" in str(caught.value)
    assert len(kept_refs(tmp_path)) == spent // TOKENS_PER_ANSWER


def test_a_limit_holds_for_all_repetitions_of_a_command_together(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    for limit, total in ((500, 5), (500, 5), (900, 9), (901, 10)):
        with pytest.raises(ExampleError, match="raise the limit"):
            write_missing(server, states, tmp_path, concurrency=8, token_limit=limit)
        assert server.served.total() == total
    write_missing(server, states, tmp_path, concurrency=8)
    assert server.served == Counter(map(prompt_of, states))
    check_whole(tmp_path, states)


def test_a_limit_that_is_reached_with_the_last_state_ends_nothing(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    assert len(write_missing(server, states, tmp_path, token_limit=12 * TOKENS_PER_ANSWER)) == 12


def test_a_server_that_does_not_say_what_it_took_is_trusted_with_no_token_too_many(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    server.script = lambda prompt, before: completion(usage=None)
    most = [sum(len(message["content"].encode()) for message in state.prompt) + MAX_TOKENS for state in states]
    with pytest.raises(ExampleError, match="raise the limit"):
        write_missing(server, states, tmp_path / "whole", token_limit=sum(most[:4]), concurrency=1)
    assert server.asked.total() == 4
    with pytest.raises(ExampleError, match="raise the limit"):
        write_missing(server, states, tmp_path / "more", token_limit=sum(most[:4]) + 1, concurrency=1)
    assert server.asked.total() == 4 + 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not say what was spent"),
        ("[]", "does not say what was spent"),
        ('{"schema": 1}', "does not say what was spent"),
        ('{"schema": 7, "prompt_tokens": 1, "completion_tokens": 1}', "has schema 7; this verl_ee reads 1"),
    ],
)
def test_a_ledger_that_is_none_is_refused(
    text: str, message: str, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    (tmp_path / LEDGER).write_text(text)
    with pytest.raises(StoreError, match=rf"spending\.json {message}"):
        write_missing(server, states, tmp_path)
    assert not server.asked


def test_the_ledger_keeps_its_form(server: Endpoint, states: list[Situation], tmp_path: Path) -> None:
    write_missing(server, states, tmp_path)
    expected = {"schema": 1, "prompt_tokens": READ * len(states), "completion_tokens": WRITTEN * len(states)}
    assert json.loads((tmp_path / LEDGER).read_text()) == expected


def test_a_ledger_that_has_no_room_is_no_failure_of_the_server(
    server: Endpoint, states: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise WriteError(f"{path} cannot be written")

    monkeypatch.setattr("verl_ee.objectives.writing.spending.write_json", full)
    with pytest.raises(WriteError, match=r"spending\.json cannot be written"):
        write_missing(server, states, tmp_path)
