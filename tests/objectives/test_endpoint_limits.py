"""What a server that writes may cost, what it and the files learn of the key, and what is refused unasked."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import logging
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.rationale_requests import (
    MAX_TOKENS,
    VARIABLE,
    WORTH,
    _key,  # noqa: F401
    ask,
    check_whole,
    fails_after,
    fails_for,
    found,  # noqa: F401
    kept,
    prompt_of,
    server,  # noqa: F401
)
from support.scripted_server import KEY, TEXT, Endpoint, Reply, Script, completion, refusal

from verl_ee.errors import ConfigError, ExampleError, StoreError, WriteError
from verl_ee.experience.files.parquet import read_table
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA
from verl_ee.objectives.reflection.situations import Situation

# Spending


@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("limit", [1, 100, 550, 1050])
def test_spending_ends_less_than_one_request_above_the_limit(
    limit: int, concurrency: int, server: Endpoint, found: list[Situation], tmp_path: Path
) -> None:
    with pytest.raises(ExampleError) as caught:
        ask(server, found, tmp_path, concurrency=concurrency, token_limit=limit)
    spent = server.served.total() * WORTH
    assert limit <= spent < limit + WORTH
    assert f"{spent:,} tokens" in str(caught.value)
    assert f"early_experience.reflection.endpoint.token_limit={limit:,}" in str(caught.value)
    assert f"{12 - spent // WORTH} of 12 texts are not written yet" in str(caught.value)
    assert len(kept(tmp_path)) == spent // WORTH


def test_a_limit_holds_for_all_repetitions_of_a_command_together(
    server: Endpoint, found: list[Situation], tmp_path: Path
) -> None:
    for limit, total in ((500, 5), (500, 5), (900, 9), (901, 10)):
        with pytest.raises(ExampleError, match="raise the limit"):
            ask(server, found, tmp_path, concurrency=8, token_limit=limit)
        assert server.served.total() == total
    ask(server, found, tmp_path, concurrency=8)
    assert server.served == Counter(map(prompt_of, found))
    check_whole(tmp_path, found)


def test_a_limit_that_is_reached_with_the_last_state_ends_nothing(
    server: Endpoint, found: list[Situation], tmp_path: Path
) -> None:
    assert len(ask(server, found, tmp_path, token_limit=12 * WORTH)) == 12


def test_a_server_that_does_not_say_what_it_took_is_trusted_with_no_token_too_many(
    server: Endpoint, found: list[Situation], tmp_path: Path
) -> None:
    server.script = lambda prompt, before: completion(usage=None)
    most = [sum(len(message["content"].encode()) for message in state.prompt) + MAX_TOKENS for state in found]
    with pytest.raises(ExampleError, match="raise the limit"):
        ask(server, found, tmp_path / "whole", token_limit=sum(most[:4]), concurrency=1)
    assert server.asked.total() == 4
    with pytest.raises(ExampleError, match="raise the limit"):
        ask(server, found, tmp_path / "more", token_limit=sum(most[:4]) + 1, concurrency=1)
    assert server.asked.total() == 4 + 5


def test_a_ledger_that_is_none_is_refused(server: Endpoint, found: list[Situation], tmp_path: Path) -> None:
    for text in ("", "[]", '{"schema": 7, "prompt_tokens": 1, "completion_tokens": 1}', '{"schema": 1}'):
        (tmp_path / "spending.json").write_text(text)
        with pytest.raises(StoreError, match=r"spending\.json does not say"):
            ask(server, found, tmp_path)
    assert not server.asked


def test_a_ledger_that_has_no_room_is_no_failure_of_the_server(
    server: Endpoint, found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise WriteError(f"{path} cannot be written")

    monkeypatch.setattr("verl_ee.objectives.endpoint.write_json", full)
    with pytest.raises(WriteError, match=r"spending\.json cannot be written"):
        ask(server, found, tmp_path)


# The key


@pytest.mark.parametrize(
    ("script", "ends"),
    [
        (fails_for([], refusal(500)), None),
        (fails_after(3, refusal(401, f"Incorrect key: {KEY}")), "refuses"),
        (fails_after(3, refusal(400, f"{'x' * 165} {KEY}")), "failed"),
        (fails_after(3, Reply(f"<p>{KEY}</p>", 500, {"Content-Type": "text/html"})), "failed"),
        (fails_after(3, Reply(f'{{"{KEY}'.encode())), "failed"),
        (lambda prompt, before: completion(f"{TEXT} {KEY}"), None),
    ],
)
def test_the_key_is_in_no_file_no_log_and_no_message(
    script: Script,
    ends: str | None,
    server: Endpoint,
    found: list[Situation],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("", *logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    server.script = script
    with pytest.raises(ExampleError, match=ends) if ends else nullcontext() as caught:
        ask(server, found, tmp_path)
    said = "".join(traceback.format_exception(caught.value)) if caught else ""
    assert server.authorizations == {f"Bearer {KEY}"}
    assert any(record.name.startswith("openai") for record in caplog.records)
    logged = caplog.text + "".join(f"{record.args!r} {record.exc_info!r}" for record in caplog.records)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rows = [repr(read_table(path, RATIONALE_SCHEMA)) for path in files if path.suffix == ".parquet"]
    assert rows
    # Half of it would be bad enough.
    for part in (KEY, KEY[:12], KEY[12:]):
        assert not any(part in text for text in (said, logged, *capfd.readouterr(), *rows))
        assert not any(part.encode() in content for content in files.values())


def test_a_placeholder_for_a_server_without_keys_is_a_word_like_any_other(
    server: Endpoint, found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "clear")
    assert {item.text for item in ask(server, found, tmp_path)} == {TEXT}


# What is refused before anything is asked


@pytest.mark.parametrize("key", [None, "", "two words", f"{KEY}\n", f"{KEY}\r\nHost: elsewhere", "schl\u00fcssel"])
def test_a_key_that_cannot_be_one_is_refused(
    key: str | None, server: Endpoint, found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE) if key is None else monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(ConfigError, match=VARIABLE) as caught:
        ask(server, found, tmp_path)
    assert not key or key not in str(caught.value)
    assert not server.asked
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"url": ""}, "url has no value"),
        ({"model": ""}, "model has no value"),
        ({"url": "localhost:8000/v1"}, "url='localhost:8000/v1' is no address"),
        ({"url": "http://localhost:port/v1"}, "is no address"),
        ({"url": "http:///v1"}, "is no address"),
    ],
)
def test_a_server_that_cannot_be_one_is_refused(
    values: dict[str, str], named: str, server: Endpoint, found: list[Situation], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"early_experience.reflection.endpoint.*{named}"):
        ask(server, found, tmp_path, **values)
    assert not server.asked
