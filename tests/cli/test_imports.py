"""Conversations of other origin: read as they are published, and what cannot be learned is told by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.export_cases import (
    THREE,
    conversation,
    refusal,
    run,
    turn,
    write_lines,
)

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.cli.main import main
from verl_ee.errors import ExampleFileError
from verl_ee.objectives.files.row_files import import_messages, read_rows, write_rows
from verl_ee.objectives.rows import Row


def test_files_as_they_are_published_are_read(tmp_path: Path) -> None:
    """No key but messages, one array over many lines, names with a suffix, metadata, empty tools."""
    plain = write_lines(tmp_path / "expert_sft_text.jsonl", conversation("user", "assistant"))
    assert list(import_messages(plain)) == [
        Row(({"role": "user", "content": "user 0"},), "assistant 1", "imitation", "expert_sft_text.jsonl, line 1")
    ]
    array = tmp_path / "iwm_sft.jsonl"
    item = conversation("system", "user", "assistant") | {"metadata": {"kind": "expert"}, "tools": []}
    array.write_text("\n " + json.dumps([item, item], indent=2))
    found = list(import_messages(array))
    assert [(row.objective, row.provenance) for row in found] == [
        ("world_model", "iwm_sft.jsonl, item 1"),
        ("world_model", "iwm_sft.jsonl, item 2"),
    ]
    named = write_lines(tmp_path / "any.jsonl", conversation("user", "assistant") | {"objective": "reflection"})
    assert [row.objective for row in import_messages(named)] == ["reflection"]
    run("import", "--format", "messages", plain, array, named, "--out", tmp_path / "rows.jsonl")
    assert {objective: len(items) for objective, items in read_rows(tmp_path / "rows.jsonl").items()} == {
        "imitation": 1,
        "world_model": 2,
        "reflection": 1,
    }


def test_what_is_learned_of_a_whole_conversation_is_said(tmp_path: Path) -> None:
    path = write_lines(tmp_path / THREE[0], conversation("system", "user", "assistant", "user", "assistant"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert f"{path}, line 1: 2 messages" in message
    assert "--turns last" in message
    (last,) = import_messages(path, "last")
    assert [message["role"] for message in last.prompt] == ["system", "user", "assistant", "user"]
    assert (last.target, last.provenance) == ("assistant 4", f"{THREE[0]}, line 1")
    both = list(import_messages(path, "all"))
    assert [(len(row.prompt), row.target) for row in both] == [(2, "assistant 2"), (4, "assistant 4")]
    assert [row.provenance for row in both] == [f"{THREE[0]}, line 1, message 3", f"{THREE[0]}, line 1, message 5"]
    write_rows(tmp_path / "rows.jsonl", [last])
    assert read_rows(tmp_path / "rows.jsonl") == {"imitation": [last]}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([], ["expected a JSON object, found list"]),
        ({}, ["'messages' must be list, found nothing"]),
        ({"messages": {}}, ["'messages' must be list, found dict"]),
        ({"messages": []}, ["last message is not the assistant's"]),
        ({"messages": ["hello"]}, ["message 1: expected a JSON object, found str"]),
        (conversation("user"), ["last message is not the assistant's"]),
        (conversation("user", "assistant", "user"), ["last message is not the assistant's"]),
        (conversation("assistant"), ["message 1: the assistant answers no user"]),
        (conversation("system", "assistant"), ["message 2: the assistant answers no user"]),
        (conversation("user", "system", "assistant"), ["message 2: only the first message may be the system's"]),
        (conversation("user", "tool", "assistant"), ["message 2: unknown role 'tool'", "system, user"]),
        (conversation("user", "asistant"), ["message 2: unknown role 'asistant'", "Did you mean 'assistant'"]),
        ({"messages": [turn("user"), turn("assistant", " \n")]}, ["message 2: there is no text to learn"]),
        ({"messages": [turn("user"), {"role": "assistant"}]}, ["message 2: 'content' must be str, found nothing"]),
        ({"messages": [turn("user"), {"role": "assistant", "content": None}]}, ["'content' must be str", "None"]),
        ({"messages": [turn("user"), turn("assistant") | {"tool_calls": []}]}, ["message 2: unknown key 'tool_calls'"]),
        (conversation("user", "assistant") | {"tools": [{}]}, ["'tools' are not rendered"]),
        (conversation("user", "assistant") | {"mesages": []}, ["unknown key 'mesages'", "Did you mean 'messages'"]),
        (conversation("user", "assistant") | {"objective": "imitate"}, ["unknown objective 'imitate'", "'imitation'"]),
        (conversation("user", "assistant") | {"objective": 3}, ["unknown objective 3"]),
        (conversation("user", "assistant") | {"objective": "world_model"}, ["'world_model' in a file of 'imitation'"]),
        (conversation("user", "assistant") | {"provenance": 3}, ["'provenance' must be str"]),
        (conversation("user", "assistant") | {"metadata": "\ud800"}, ["not valid Unicode"]),
    ],
)
def test_a_line_that_cannot_be_learned_is_refused(tmp_path: Path, item: object, words: list[str]) -> None:
    path = write_lines(tmp_path / THREE[0], conversation("user", "assistant"), item, conversation("nobody"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert message.startswith(f"{path}, line 2")
    for word in words:
        assert word in message


def test_an_objective_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", conversation("user", "assistant"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert f"{path}, line 1: the objective is not known" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"messages": \n', ["line 1: not valid JSON"]),
        (b'{"messages": ', ["line 1: not valid JSON", "cut off"]),
        (b'\n{"messages": "\xe9"}\n', ["line 2: not UTF-8"]),
        (b'[{"messages": []},\n {]', ["line 2: not valid JSON"]),
        (b'["\xe9"]', ["not UTF-8"]),
        (b"[3]", ["item 1: expected a JSON object, found int"]),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / THREE[0]
    path.write_bytes(content)
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    for word in (str(path), *words):
        assert word in message


def test_a_folder_without_the_files_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "expert_sft.jsonl" in refusal(ExampleFileError, lambda: list(import_messages(tmp_path)))
    assert "No such file" in refusal(ExampleFileError, lambda: list(import_messages(tmp_path / "none.jsonl")))


def test_a_failed_import_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    good = write_lines(tmp_path / "expert_sft_good.jsonl", conversation("user", "assistant"))
    bad = write_lines(tmp_path / "expert_sft_bad.jsonl", conversation("user", "assistant"), {})
    run("import", "--format", "messages", good, "--out", rows)
    before = rows.read_bytes()
    assert main(["import", "--format", "messages", str(bad), "--out", str(rows)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"ExampleFileError: {bad}, line 2")
    assert rows.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [bad.name, good.name, rows.name]
    empty = write_lines(tmp_path / THREE[0])
    assert main(["import", "--format", "messages", str(empty), "--out", str(rows)]) == 1
    assert rows.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["holds no row", "verl-ee import"]),
        (json.dumps(conversation("user", "assistant")), ["line 1", "'schema' is None", "verl_ee.examples/1"]),
        (json.dumps({"schema": "verl_ee.expert/1"}), ["line 1", "'schema' is 'verl_ee.expert/1'"]),
        (
            json.dumps({"schema": "verl_ee.examples/2"}),
            ["line 1", "verl_ee.examples/2", "reads verl_ee.examples/1", "Update verl_ee"],
        ),
        (json.dumps({"schema": "verl_ee.examples/1"} | conversation("user", "assistant")), ["objective is not known"]),
    ],
)
def test_a_file_that_is_not_one_of_rows_is_refused(tmp_path: Path, line: str, words: list[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    message = refusal(ExampleFileError, lambda: read_rows(tmp_path / "rows.jsonl"))
    for word in (str(tmp_path / "rows.jsonl"), *words):
        assert word in message
    assert read_rows(None) == {}
