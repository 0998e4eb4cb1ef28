"""Transitions of the tests' games, computed and not executed, and a writer of them for other processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.games import shown

from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.files import part_files
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.store import Transition, state_key, transition_key

GAME = {"id": "a/B-v0", "version": "1", "kwargs": {"x": 1, "y": 2}}
WRITERS, BATCHES = 3, 15


def transition(task: str, prefix: Iterable[str], action: str, owner: str = "", **values: Any) -> Transition:
    """Return the transition of an action in a game."""
    path = tuple(prefix)
    state = state_key(GAME, task, 7, path, owner)
    outcome = Outcome(action, shown(task, 7, [*path, action]), action != "jam", False)
    return Transition(transition_key(state, action), state, task, path, replace(outcome, **values))


def written(writer: int) -> list[list[Transition]]:
    """Batches of one writer: of a task of its own, and of one that all play."""
    return [
        [
            transition(task, ["press 0"] * batch, f"press {number}")
            for task in (f"own {writer}", "all")
            for number in range(3)
        ]
        for batch in range(BATCHES)
    ]


def write_parts(folder: Path, writer: int) -> int:
    """Write everything, in another process, into files of few rows."""
    part_files.PART_ROWS = 20 + writer
    cache = TransitionCache(folder, str.strip)
    for batch in written(writer):
        cache.add(batch)
        cache.flush()
    return len(cache.known_at_start)
