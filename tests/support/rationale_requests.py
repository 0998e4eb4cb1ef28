"""Twelve states, the rationales that a scripted server writes for them, and the files of these."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

# The first request imports it, which may take longer than a slow server is given.
import openai.resources.chat.completions  # noqa: F401
import pytest
from support.game_collections import write_here
from support.rationale_worlds import STATELESS_GATES
from support.scripted_server import KEY, MODEL, READ, WRITTEN, Endpoint, Reply, Script
from support.stage_worlds import config

from verl_ee.config import WriterConfig
from verl_ee.envs.household.env import Household
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.rationales import (
    RATIONALE_SCHEMA,
    RATIONALES_FILE,
    Rationale,
    read_rationales,
    write_rationales,
)
from verl_ee.objectives.reflection.situations import Situation, situations
from verl_ee.objectives.writing.endpoint import EndpointWriter

VARIABLE = "VERL_EE_TEST_KEY"
TOKENS_PER_ANSWER = READ + WRITTEN
MAX_TOKENS = 64
LEDGER = "spending.json"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Situation]:
    """Twelve states of the household, each with a prompt of its own."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(f"train/{index}") for index in range(4)]
    write_here(folder, Household, trajectories, 2)
    twelve = situations(trajectories, read_branches(folder), 8)[:12]
    assert len({prompt_of(state) for state in twelve}) == 12
    return twelve


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server() -> Iterator[Endpoint]:
    """A server whose `script` a test sets."""
    with Endpoint() as endpoint:
        yield endpoint


def prompt_of(state: Situation) -> str:
    return json.dumps(state.prompt)


def writer_config(server: Endpoint, **changes: object) -> WriterConfig:
    """The writer `server` of a job; `changes` are keys of its endpoint."""
    endpoint: dict[str, object] = {"url": server.url, "model": MODEL, "key_variable": VARIABLE, "concurrency": 4}
    endpoint |= {"retries": 2, "timeout": 20.0, "max_failures": 3, **changes}
    writer = {"kind": "endpoint", "endpoint": endpoint, "temperature": 0.9, "max_tokens": MAX_TOKENS}
    return config({"imitation": {}}, writers={"server": writer}).writer("server")


def write_missing(server: Endpoint, states: list[Situation], folder: Path, **changes: object) -> list[Rationale]:
    """Have everything written that has not been, as a command and its repetition do."""
    writer = EndpointWriter(writer_config(server, **changes), folder / LEDGER, pause=0.001)
    return write_rationales(folder, states, writer, STATELESS_GATES)


def refs_of(items: Sequence[Situation] | Sequence[Rationale]) -> list[StateRef]:
    return [item.ref for item in items]


def fails_for(states: list[Situation], reply: Reply, times: int | None = None) -> Script:
    """Give `reply` to each of `states`, the first so many times that it comes."""
    prompts = {prompt_of(state) for state in states}
    return lambda prompt, before: reply if prompt in prompts and (times is None or before < times) else None


def fails_after(answers: int, reply: Reply) -> Script:
    """Answer so often, then give `reply` for ever."""
    lock, given = threading.Lock(), [0]

    def script(prompt: str, before: int) -> Reply | None:
        with lock:
            given[0] += 1
            return None if given[0] <= answers else reply

    return script


def check_whole(folder: Path, states: list[Situation]) -> None:
    """The file has each state once, and nothing is left beside it."""
    assert refs_of(read_rationales(folder)) == refs_of(states)
    assert sorted(path.name for path in folder.iterdir()) == [RATIONALES_FILE, LEDGER]


def kept_refs(folder: Path) -> list[StateRef]:
    """States that a run which stopped has left on disk."""
    assert not (folder / RATIONALES_FILE).exists()
    rows = [row for path in folder.rglob("*.parquet") for row in read_table(path, RATIONALE_SCHEMA)]
    return [Rationale.from_row(row).ref for row in rows]
