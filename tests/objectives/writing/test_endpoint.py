"""A server that writes, and all the ways in which it fails: the run ends, and nothing is requested or lost twice.

The key of the server is in no file, no log and no message.
"""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import openai
import pytest
from support.rationale_requests import (
    MAX_TOKENS,
    VARIABLE,
    _key,  # noqa: F401
    check_whole,
    fails_after,
    fails_for,
    kept_refs,
    prompt_of,
    refs_of,
    server,  # noqa: F401
    states,  # noqa: F401
    write_missing,
    writer_config,
)
from support.scripted_server import GARBAGE, KEY, MODEL, PASSING, TEXT, Endpoint, Reply, Script, completion, refusal

from verl_ee.errors import ConfigError, ExampleError
from verl_ee.experience.files.parquet import read_table
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA, read_rationales, write_rationales
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.writing.endpoint import EndpointWriter

SLOW = ("silent", "trickle")
CUT = f"cut off at max_tokens={MAX_TOKENS}"


# A server that works


def test_each_state_is_asked_once_and_as_configured(server: Endpoint, states: list[Situation], tmp_path: Path) -> None:
    written = write_missing(server, states, tmp_path)
    assert {(item.text, item.writer, item.gate) for item in written} == {(TEXT, "endpoint", "")}
    assert server.asked == Counter(map(prompt_of, states))
    assert all(body["model"] == MODEL and body["max_tokens"] == MAX_TOKENS for body in server.bodies)
    assert {body["temperature"] for body in server.bodies} == {0.9}
    assert server.authorizations == {f"Bearer {KEY}"}
    check_whole(tmp_path, states)
    # What is done is not asked about again.
    assert write_missing(server, states, tmp_path) == written
    assert server.asked.total() == len(states)


def test_as_many_requests_as_allowed_are_under_way_at_a_time(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    # Nobody is answered before four have asked.
    four = threading.Barrier(4)

    def script(prompt: str, before: int) -> None:
        four.wait(20)

    server.script = script
    write_missing(server, states, tmp_path, token_limit=1_000_000)
    assert server.most == 4
    assert server.asked.total() == len(states)


def test_no_limit_of_the_client_library_holds_requests_back(
    server: Endpoint, states: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody is answered before twelve have asked, and the library's clients have two connections if none are set.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=2)
    monkeypatch.setattr("openai._base_client.DEFAULT_CONNECTION_LIMITS", limits)
    twelve = threading.Barrier(len(states))

    def script(prompt: str, before: int) -> None:
        twelve.wait(20)

    server.script = script
    write_missing(server, states, tmp_path, concurrency=len(states), retries=0)
    assert server.most == server.asked.total() == len(states)


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (completion(None), "", "is empty: the server's answer has no text"),
        (completion(None, finish_reason="length"), "", f"is empty: {CUT}"),
        (completion(f"{KEY} {TEXT}", finish_reason="length"), f"*** {TEXT}", f"has no end: {CUT}"),
        (
            completion(TEXT, finish_reason="content_filter"),
            TEXT,
            "has no end: the server ended it with finish_reason='content_filter'",
        ),
        (completion(message={"role": "assistant"}), "", "is empty: the server's answer has no text"),
        (
            completion(message={"role": "assistant", "content": {"text": TEXT}}),
            "",
            "is empty: the server's answer has no text",
        ),
        (completion(" "), "", "is empty"),
        (completion(TEXT, usage=None), TEXT, ""),
        (completion(TEXT, usage={"prompt_tokens": "many", "completion_tokens": -5}), TEXT, ""),
        (completion(TEXT, usage="much"), TEXT, ""),
        (completion(f"{TEXT} \ud83d"), f"{TEXT} ?", ""),
        (completion(f"\n {TEXT}\u0000 \U0001f600 "), f"{TEXT}\u0000 \U0001f600", ""),
    ],
)
def test_an_odd_answer_is_an_answer(
    reply: Reply, text: str, reason: str, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    server.script = fails_for(states[1:2], reply)
    written = write_missing(server, states, tmp_path)
    assert [item.text for item in written] == [text if index == 1 else TEXT for index in range(len(states))]
    assert (written[1].gate, written[1].reason) == ("length" if reason else "", reason)
    assert server.asked.total() == len(states)
    assert read_rationales(tmp_path) == written


# A server that fails now and then


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_asked_again(name: str, server: Endpoint, states: list[Situation], tmp_path: Path) -> None:
    server.script = fails_for(states[2:5], PASSING[name], times=1)
    written = write_missing(server, states, tmp_path, timeout=2.0 if name in SLOW else 20.0)
    assert {item.text for item in written} == {TEXT}
    assert all(server.asked[prompt_of(state)] >= 2 for state in states[2:5])
    if name not in SLOW:  # there a good answer may come too late as well
        assert server.served == Counter(map(prompt_of, states))
        assert [server.asked[prompt_of(state)] for state in states] == [1, 1, 2, 2, 2, *[1] * 7]
    check_whole(tmp_path, states)


@pytest.mark.parametrize("name", sorted({*PASSING, *GARBAGE} - {*SLOW}))
def test_a_request_that_always_fails_is_given_up_and_the_rest_is_written(
    name: str, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    server.script = fails_for(states[3:4], (PASSING | GARBAGE)[name])
    written = write_missing(server, states, tmp_path)
    assert [item.text for item in written] == [*[TEXT] * 3, "", *[TEXT] * 8]
    assert written[3].reason == "is empty: its request failed"
    # Garbage was paid for, and so would be more of it.
    assert server.asked[prompt_of(states[3])] == (3 if name in PASSING else 1)
    check_whole(tmp_path, states)


def test_failures_with_answers_in_between_stop_nothing(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    server.script = fails_for(states[::2], refusal(500))
    written = write_missing(server, states, tmp_path, concurrency=1, max_failures=1)
    assert [item.text for item in written] == ["", TEXT] * 6


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    asked: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float, *_: object) -> None:
        if delay:
            asked.append(delay)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("86400", 60, 60),
        ("inf", 60, 60),
        ("-3", 0, 0.1),
        ("nan", 0, 0.1),
        ("soon", 0, 0.1),
    ],
)
def test_a_server_says_how_long_to_wait(
    said: str, low: float, high: float, pauses: list[float], server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    server.script = fails_for(states[:1], refusal(429, retry_after=said), times=1)
    write_missing(server, states[:1], tmp_path)
    (pause,) = pauses
    assert low <= pause <= high


def test_the_pauses_grow(pauses: list[float], server: Endpoint, states: list[Situation], tmp_path: Path) -> None:
    server.script = fails_for(states[:1], refusal(503), times=9)
    config = writer_config(server, retries=9)
    write_rationales(tmp_path, states[:1], EndpointWriter(config), ())
    assert len(pauses) == 9
    assert all(0.75 * most <= pause <= most for pause, most in zip(pauses, (0.5, 1, 2, 4, 8, 16, 32), strict=False))
    assert max(pauses) <= 60.0


# A server that is gone


@pytest.mark.parametrize("name", sorted({*PASSING, *GARBAGE}))
def test_too_many_failures_in_a_row_end_the_run_and_nothing_is_lost(
    name: str, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    slow = name in SLOW
    server.script = fails_after(0 if slow else 5, (PASSING | GARBAGE)[name])
    with pytest.raises(ExampleError) as caught:
        write_missing(server, states, tmp_path, concurrency=1, retries=1, timeout=0.2 if slow else 20.0)
    answered = 0 if slow else 5
    message = str(caught.value)
    assert f"4 requests to {server.url} in a row failed" in message
    assert "repeat the command when the server answers" in message
    assert f"{12 - answered} of 12 texts are not written yet" in message
    assert "\n" not in message
    # Four in a row, each asked twice if that may help; the server may not even notice that it was too slow.
    expected = answered + 4 * (2 if name in PASSING else 1)
    assert server.asked.total() <= expected if slow else server.asked.total() == expected
    assert kept_refs(tmp_path) == refs_of(states[:answered])
    server.script = lambda prompt, before: None
    written = write_missing(server, states, tmp_path)
    assert {item.text for item in written} == {TEXT}
    # What was answered before is not asked again, and what failed is.
    assert [server.asked[prompt_of(state)] for state in states[:answered]] == [1] * answered
    if name not in GARBAGE:
        assert server.served == Counter(map(prompt_of, states))
    check_whole(tmp_path, states)


def test_what_was_answered_while_the_server_broke_is_kept(
    server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    """As before, with requests side by side: which of them were answered is for the server to say."""
    for answers in (3, 4):
        server.script = fails_after(answers, refusal(500))
        with pytest.raises(ExampleError, match="in a row failed"):
            write_missing(server, states, tmp_path, concurrency=8, max_failures=0)
        assert Counter(kept_refs(tmp_path)) == Counter(state.ref for state in states if server.served[prompt_of(state)])
    server.script = lambda prompt, before: None
    write_missing(server, states, tmp_path, concurrency=8)
    assert server.served == Counter(map(prompt_of, states))
    check_whole(tmp_path, states)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_run_at_once(status: int, server: Endpoint, states: list[Situation], tmp_path: Path) -> None:
    server.script = fails_after(5, refusal(status, f"no model for {KEY}"))
    with pytest.raises(
        ExampleError, match=rf"refuses to serve model 'writer' \(status {status}\).*{VARIABLE}"
    ) as caught:
        write_missing(server, states, tmp_path, concurrency=1)
    assert server.url in str(caught.value)
    assert server.asked.total() == 6
    assert kept_refs(tmp_path) == refs_of(states[:5])


def test_a_server_that_is_not_there_ends_the_run(states: list[Situation], tmp_path: Path) -> None:
    with Endpoint() as server:
        pass
    with pytest.raises(ExampleError, match=r"4 requests to http://127.* failed.*repeat the command"):
        write_missing(server, states, tmp_path, concurrency=1)
    assert kept_refs(tmp_path) == []


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
    states: list[Situation],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("", *logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    server.script = script
    with pytest.raises(ExampleError, match=ends) if ends else nullcontext() as caught:
        write_missing(server, states, tmp_path)
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
    server: Endpoint, states: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "clear")
    assert {item.text for item in write_missing(server, states, tmp_path)} == {TEXT}


# What is refused before anything is asked


@pytest.mark.parametrize("key", [None, "", "two words", f"{KEY}\n", f"{KEY}\r\nHost: elsewhere", "schl\u00fcssel"])
def test_a_key_that_cannot_be_one_is_refused(
    key: str | None, server: Endpoint, states: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE) if key is None else monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(ConfigError, match=VARIABLE) as caught:
        write_missing(server, states, tmp_path)
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
    values: dict[str, str], named: str, server: Endpoint, states: list[Situation], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"early_experience.writers.server.endpoint.*{named}"):
        write_missing(server, states, tmp_path, **values)
    assert not server.asked
