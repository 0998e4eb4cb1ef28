"""The way back to a state that an environment gets, chosen in the process that holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.games import (
    Dice,
    Game,
    Homesick,
    Owner,
    SavedDice,
    SavedGame,
    SharedFile,
    SharedMemory,
    expert,
    id_of,
    recorded,
    shown,
    whole,
)

from verl_ee.config import CollectConfig, EnvironmentConfig, parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.branching.supervisor import HostSupervisor

ACTIONS = ["press 1", "press 2", "press 3"]


def chosen(
    cls: type[Game], asked: str = "auto", sample: ExpertTrajectory | None = None, **kwargs: Any
) -> tuple[str, Usage]:
    """The way that a host chooses, and what it tried for it."""
    environment = EnvironmentConfig(id=id_of(cls), kwargs=kwargs)
    config = CollectConfig.model_validate({"restore": asked, "step_timeout": 10.0, "start_timeout": 10.0})
    supervisor = HostSupervisor(environment, config, sample or expert(length=5))
    supervisor.close()
    return supervisor.restore, supervisor.trial


def test_a_snapshot_comes_first() -> None:
    assert chosen(SavedGame) == ("snapshot", Usage())
    assert chosen(SavedGame, forkable=True) == ("snapshot", Usage())


@pytest.mark.parametrize(("asked", "way"), [("fork", "fork"), ("replay", "replay"), ("snapshot", "snapshot")])
def test_what_is_asked_for_is_taken_where_it_is_possible(asked: str, restore: str) -> None:
    assert chosen(SavedGame, asked, forkable=True) == (restore, Usage())


def test_an_environment_that_declares_it_is_forked_untried() -> None:
    assert chosen(Game, forkable=True) == ("fork", Usage())


def test_an_environment_that_declares_nothing_is_tried_along_the_whole_sample() -> None:
    restore, trial = chosen(Game)
    assert restore == "fork"
    assert trial == Usage(env_steps=2 * 5, resets=1)


def test_an_environment_that_declares_against_it_is_replayed() -> None:
    assert chosen(Game, forkable=False) == ("replay", Usage())
    with pytest.raises(
        EnvError, match=r"--restore=fork, but .*Game-v0 cannot be forked.*forkable = False.*--restore=auto"
    ):
        chosen(Game, "fork", forkable=False)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("socket", ["descriptor", "socket:"]),
        ("file", ["descriptor", "/log"]),
        ("subprocess", ["subprocess"]),
        ("thread", ["thread"]),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at-reset", "at-the-first-step"])
def test_what_a_child_would_share_or_lack_stands_against_a_fork(
    tmp_path: Path, what: str, words: list[str], late: bool
) -> None:
    assert chosen(Owner, what=what, late=late, folder=str(tmp_path))[0] == "replay"
    with pytest.raises(EnvError) as raised:
        chosen(Owner, "fork", what=what, late=late, folder=str(tmp_path))
    for word in ("--restore=fork", "Owner-v0 cannot be forked", "it owns", *words):
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "shared",
    [lambda folder: (SharedMemory, {}), lambda folder: (SharedFile, {"folder": str(folder)})],
    ids=["memory", "file"],
)
def test_a_child_whose_step_changes_the_parent_stands_against_a_fork(
    tmp_path: Path, shared: Callable[[Path], tuple[type[Game], dict[str, Any]]]
) -> None:
    cls, kwargs = shared(tmp_path)
    sample = recorded(cls(**kwargs), "game 3", ACTIONS)
    restore, trial = chosen(cls, sample=sample, **kwargs)
    assert restore == "replay"
    assert trial.env_steps > 0
    with pytest.raises(EnvError, match=r"cannot be forked: .*trial"):
        chosen(cls, "fork", sample=sample, **kwargs)


def test_a_child_that_sees_something_else_stands_against_a_fork() -> None:
    assert chosen(Homesick)[0] == "replay"
    with pytest.raises(EnvError, match="at step 0 of a trial, child and parent saw different outcomes"):
        chosen(Homesick, "fork")


def test_a_sample_that_is_not_what_the_environment_shows_stands_against_a_fork() -> None:
    other = recorded(Game(), "game 3", ACTIONS)
    wrong = ExpertTrajectory(**{**vars(other), "task": "game 4"})
    with pytest.raises(EnvError, match="in a trial, .*" + shown("game 3", 7, []).split()[-1]):
        chosen(Game, "fork", sample=wrong)


def test_a_nondeterministic_environment_is_never_replayed() -> None:
    for asked in ("auto", "replay"):
        with pytest.raises(EnvError) as raised:
            chosen(Dice, asked, forkable=False)
        for word in (id_of(Dice), "nondeterministic", "snapshot() and restore()", "forkable = True"):
            assert word in str(raised.value)
    assert chosen(SavedDice, forkable=False)[0] == "snapshot"
    assert chosen(Dice, forkable=True)[0] == "fork"


def test_a_key_is_named_as_a_user_types_it() -> None:
    stages = {"first": {"objectives": ["imitation"], "epochs": 1, "lr": 1e-4, "batch_size": 1}}
    collect = {"mine": {"restore": "snapshot"}}
    job = {"method": "iwm", "environment": {"id": "?"}, "experts": "?", "stages": stages}
    job |= {"collect": collect, "world_model": {"collect": "mine"}}
    with pytest.raises(EnvError, match=r"^early_experience\.collect\.mine\.restore=snapshot, but .*mine\.restore=auto"):
        HostSupervisor(EnvironmentConfig(id=id_of(Game)), parse(job).collect["mine"], expert())


@pytest.mark.parametrize("cls", [Game, Dice])
def test_a_snapshot_that_is_not_there_cannot_be_asked_for(cls: type[Game]) -> None:
    with pytest.raises(EnvError, match=r"^--restore=snapshot, but .* has no snapshot\(\)"):
        chosen(cls, "snapshot", forkable=True)


def test_the_environment_that_was_tried_branches_as_if_it_had_not_been() -> None:
    sample = expert(length=5)
    supervisor = HostSupervisor(EnvironmentConfig(id=id_of(Game)), CollectConfig(k=2), sample)
    answers = list(supervisor.branch(whole(expert("game 9", 3))))
    supervisor.close()
    for answer in answers:
        path = ["press 0"] * answer.step
        assert [done.observation for done in answer.outcomes] == [
            shown("game 9", 7, [*path, action]) for action in answer.actions
        ]
