"""Nothing is executed twice: not by another run, nor by the same one after it was killed or lost a node."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from support import killed_collections
from support.game_collections import (
    collect,
    executed,
    in_one_process,
    kept,
    tables,
)
from support.games import SavedDice, expert
from support.jobs import ROOT

from verl_ee.errors import BranchError
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.store import BRANCHES, TRANSITION_SCHEMA, read_branches

TESTS = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
"""Where a process of its own finds the programs of the tests."""


@pytest.mark.usefixtures("cluster")
def test_what_another_run_has_executed_is_not_executed_again(tmp_path: Path) -> None:
    experts = [expert(f"game {number}", 6, listed=40) for number in range(4)]
    shared = {"trajectories": experts, "cache": str(tmp_path / "cache"), "workers": 1, "kwargs": {"listed": 40}}
    shared["restore"] = "snapshot"
    first = collect(tmp_path / "first", **shared, k=8)
    assert (first.reused, first.cost.env_steps) == (0, 24 * 9)
    for name, k in (("again", 8), ("fewer", 4)):
        result = collect(tmp_path / name, **shared, k=k)
        assert (result.cost.env_steps, result.cost.resets, result.restore) == (0, 0, "")
        assert result.reused == result.transitions == 24 * (k + 1)
    assert tables(tmp_path / "again") == tables(tmp_path / "first")
    more = collect(tmp_path / "more", **shared, k=11)
    # Three new alternatives in each state, and the walk to the last one: its own outcome is known.
    assert (more.reused, more.cost.env_steps) == (24 * 9, 4 * (6 * 3 + 5))
    fewest = in_one_process(tmp_path / "expected", experts, k=4)
    assert tables(tmp_path / "fewer") == fewest


@pytest.mark.usefixtures("cluster")
def test_an_action_with_two_outcomes_in_a_shared_folder_fails_alone(tmp_path: Path) -> None:
    experts = [expert(f"game {number}", 6, listed=40) for number in range(2)]
    values = {"trajectories": experts, "cache": str(tmp_path / "cache"), "kwargs": {"listed": 40}, "k": 4}
    collect(tmp_path / "first", **values)
    rows = [row for row in TransitionCache(tmp_path / "cache", str.strip).parts.read() if len(row["prefix"]) == 2]
    contradicted = next(row for row in rows if row["task"] == "game 1" and row["action"] != "press 0")
    foreign = PartFiles(tmp_path / "cache", TRANSITION_SCHEMA)
    foreign.write([contradicted | {"observation": "You see a dragon."}])
    result = collect(tmp_path / "second", **values, max_failed=0.5)
    assert (result.failed, result.lost, result.faults) == (1, 0, {"conflict": 1})
    missing = frozenset({("game 1", 2, contradicted["action"])})
    assert tables(tmp_path / "second") == in_one_process(tmp_path / "expected", experts, missing, k=4)
    with pytest.raises(BranchError) as raised:
        collect(tmp_path / "third", **values, max_failed=0.0)
    for word in ("1 of 60 actions", repr(contradicted["action"]), "'You see a dragon.'", "nondeterministic=True"):
        assert word in str(raised.value)
    assert str(tmp_path / "cache") in str(raised.value)


@pytest.mark.usefixtures("cluster")
def test_a_nondeterministic_environment_shares_nothing(tmp_path: Path) -> None:
    twins = [expert("game 0", 4), expert("game 0", 4)]
    values = {"trajectories": twins, "cache": str(tmp_path / "cache"), "k": 3, "workers": 1, "restore": "snapshot"}
    for name in ("first", "second"):
        result = collect(tmp_path / name, SavedDice, **values)
        assert (result.transitions, result.branches, result.reused) == (32, 32, 0)
        assert result.cost.env_steps == 32
    one, two = ({item.outcome.observation for item in read_branches(tmp_path / name)} for name in ("first", "second"))
    assert all(text.startswith("game 0") for text in one & two)


class Driver:
    """A collection in a process of its own, whose games have to be let in."""

    def __init__(self, folder: Path, name: str, program: str) -> None:
        self.store, self.gate, self.log, self.output = (
            folder / part for part in ("store", "gate", name, f"{name}.txt")
        )
        self.gate.mkdir(exist_ok=True)
        self.log.touch()
        command = [sys.executable, "-m", "support.killed_collections", program, self.store, self.gate, self.log]
        with self.output.open("w") as output:
            # What Ray starts inherits the output: a pipe would stay open as long as that lives.
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": TESTS}
            )

    def wait_for_rows(self, count: int) -> None:
        """Wait until so many transitions are on disk."""
        for _ in range(6000):
            if len(kept(self.store)) >= count:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                break
        raise AssertionError(self.output.read_text())

    def report(self) -> dict[str, Any]:
        """What it says at its end."""
        assert self.process.wait(120) == 0, self.output.read_text()
        result: dict[str, Any] = json.loads(self.log.with_suffix(".json").read_text())
        return result


Drive = Callable[..., Driver]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    """Starts drivers on one folder; none outlives the test."""
    started = []

    def start(name: str, program: str = "join") -> Driver:
        started.append(Driver(tmp_path, name, program))
        return started[-1]

    yield start
    for driver in started:
        driver.process.kill()
        driver.process.wait()


@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_killed_five_times_ends_with_the_same_bytes(
    tmp_path: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    expected = in_one_process(tmp_path / "expected", killed_collections.TRAJECTORIES, k=killed_collections.K)
    rng, known = random.Random(20), set[tuple[str, ...]]()
    for games in (1, 2, 4, 5, 7):
        driver = drive(f"driver {games}")
        killed_collections.let_in(driver.gate, games)
        # A game of which nothing is known has been let in, and brings this many.
        driver.wait_for_rows(len(known) + rng.randint(1, killed_collections.LENGTH * killed_collections.K))
        driver.process.kill()
        assert driver.process.wait() == -signal.SIGKILL
        assert not (driver.store / BRANCHES).exists()
        assert not known & executed(driver.log)
        known = kept(driver.store)
    last = drive("last")
    killed_collections.let_in(last.gate, killed_collections.GAMES)
    result = last.report()
    assert tables(last.store) == expected
    assert not known & executed(last.log)
    assert (result["lost"], result["failed"], result["faults"]) == (0, 0, {})
    assert not (last.store / "parts").exists()


def test_a_run_that_loses_a_node_ends_with_the_same_bytes(tmp_path: Path, drive: Drive) -> None:
    expected = in_one_process(tmp_path / "expected", killed_collections.TRAJECTORIES, k=killed_collections.K)
    driver = drive("driver", "lose_node")
    result = driver.report()
    assert tables(driver.store) == expected
    assert (result["lost"], result["failed"], result["faults"]) == (0, 0, {"died": 1})
