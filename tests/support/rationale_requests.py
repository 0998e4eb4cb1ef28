"""Twelve states, of which a scripted server is asked for rationales, and what that leaves on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The first request imports it, which may take longer than a slow server is given.
import openai.resources.chat.completions  # noqa: F401
import pytest
from support.game_collections import write_here
from support.scripted_server import KEY, MODEL, READ, WRITTEN, Endpoint, Reply, Script

from verl_ee.config import EndpointConfig
from verl_ee.envs.household.env import Household
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.store import read_branches
from verl_ee.objectives.endpoint import EndpointWriter
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import (
    RATIONALE_SCHEMA,
    RATIONALES_FILE,
    Rationale,
    read_rationales,
    write_rationale_file,
)
from verl_ee.objectives.reflection.situations import Situation, situations

VARIABLE = "VERL_EE_TEST_KEY"
WORTH = READ + WRITTEN
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Situation]:
    """Twelve states of the household, each with a prompt of its own."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(f"train/{number}") for number in range(4)]
    write_here(folder, Household, trajectories, 2)
    states = situations(trajectories, read_branches(folder), 8)[:12]
    assert len({prompt_of(state) for state in states}) == 12
    return states


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


def config_of(server: Endpoint, **values: Any) -> EndpointConfig:
    given = {"url": server.url, "model": MODEL, "key_variable": VARIABLE, "concurrency": 4, "retries": 2}
    return EndpointConfig(**{**given, "timeout": 20.0, "max_failures": 3, **values})


def ask(server: Endpoint, found: list[Situation], folder: Path, **values: Any) -> list[Rationale]:
    """Have everything written that has not been, as a command and its repetition do."""
    writer = EndpointWriter(config_of(server, **values), 0.9, MAX_TOKENS, folder / "spending.json", pause=0.001)
    return write_rationale_file(folder, found, writer, tuple(GATES), 0.0)


def places(states: list[Any]) -> list[tuple[int, int]]:
    return [(state.trajectory, state.step) for state in states]


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


def check_whole(folder: Path, found: list[Situation]) -> None:
    """The file has each state once, and nothing is left beside it."""
    assert places(read_rationales(folder)) == places(found)
    assert sorted(path.name for path in folder.iterdir()) == [RATIONALES_FILE, "spending.json"]


def kept(folder: Path) -> list[tuple[int, int]]:
    """States that a run which stopped has left on disk."""
    assert not (folder / RATIONALES_FILE).exists()
    files = [path for path in folder.rglob("*.parquet")]
    return [(row["trajectory"], row["step"]) for path in files for row in read_table(path, RATIONALE_SCHEMA)]
