"""Environments that may be forked: they declare it, or a trial along a whole sample proves it safe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.games import Game, recorded, shown
from support.hosts import chosen_restore
from support.unforkable_games import Homesick, Owner, SharedFile, SharedMemory

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvError
from verl_ee.experience.branching.protocol import Usage

ACTIONS = ["press 1", "press 2", "press 3"]
OWNED = [
    ("socket", ["descriptor", "socket:"]),
    ("file", ["descriptor", "/log"]),
    ("subprocess", ["subprocess"]),
    ("thread", ["thread"]),
]
SHARED: dict[str, Callable[[Path], tuple[type[Game], dict[str, Any]]]] = {
    "memory": lambda folder: (SharedMemory, {}),
    "file": lambda folder: (SharedFile, {"folder": str(folder)}),
}


def test_an_environment_that_declares_it_is_forked_untried() -> None:
    assert chosen_restore(Game, "fork", forkable=True) == ("fork", Usage())


def test_an_environment_that_declares_nothing_is_tried_along_the_whole_sample() -> None:
    assert chosen_restore(Game, "fork") == ("fork", Usage(env_steps=2 * 5, resets=1))


def test_an_environment_that_declares_against_it_is_not_forked() -> None:
    with pytest.raises(
        EnvError, match=r"--restore=fork, but .*Game-v0 cannot be forked.*forkable = False.*--restore=auto"
    ):
        chosen_restore(Game, "fork", forkable=False)


@pytest.mark.parametrize(("what", "words"), OWNED)
@pytest.mark.parametrize("late", [False, True], ids=["at-reset", "at-the-first-step"])
def test_resources_that_a_child_would_share_or_lack_stand_against_a_fork(
    tmp_path: Path, what: str, words: list[str], late: bool
) -> None:
    values = {"what": what, "late": late, "folder": str(tmp_path)}
    assert chosen_restore(Owner, **values)[0] == "replay"
    with pytest.raises(EnvError) as raised:
        chosen_restore(Owner, "fork", **values)
    for word in ("--restore=fork", "Owner-v0 cannot be forked", "it owns", *words):
        assert word in str(raised.value)


@pytest.mark.parametrize("shared", SHARED)
def test_a_child_whose_step_changes_the_parent_stands_against_a_fork(tmp_path: Path, shared: str) -> None:
    cls, kwargs = SHARED[shared](tmp_path)
    sample = recorded(cls(**kwargs), "game 3", ACTIONS)
    restore, trial = chosen_restore(cls, sample=sample, **kwargs)
    assert restore == "replay"
    assert trial.env_steps > 0
    with pytest.raises(EnvError, match=r"cannot be forked: .*trial"):
        chosen_restore(cls, "fork", sample=sample, **kwargs)


def test_a_child_that_sees_something_else_stands_against_a_fork() -> None:
    assert chosen_restore(Homesick)[0] == "replay"
    with pytest.raises(EnvError, match="at step 0 of a trial, child and parent saw different outcomes"):
        chosen_restore(Homesick, "fork")


def test_a_sample_that_is_not_what_the_environment_shows_stands_against_a_fork() -> None:
    other = recorded(Game(), "game 3", ACTIONS)
    wrong = ExpertTrajectory(**{**vars(other), "task": "game 4"})
    with pytest.raises(EnvError, match="in a trial, .*" + shown("game 3", 7, []).split()[-1]):
        chosen_restore(Game, "fork", sample=wrong)
