"""Environments that cannot be made at first: another attempt is made and counted, and the last one ends the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.games import expert, id_of, shown, whole
from support.hosts import supervised
from support.reluctant_games import Reluctant

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.protocol import TRIES, Fault, StateResult
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.state_ref import StateRef

LENGTH, K, STEP = 4, 9, 2
TRAJECTORY = expert("game 1", LENGTH)
NOT_UP = "cannot be made with the arguments .*ConnectionError: the server is not up"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Where the game notes that it was made, and that there was trouble."""
    folders = {name: tmp_path / name for name in ("makings", "marks")}
    for folder in folders.values():
        folder.mkdir()
    return {name: str(folder) for name, folder in folders.items()}


def environment_of(folders: dict[str, str], what: str = "fail", times: int = 0, **values: Any) -> EnvironmentConfig:
    """A game that is made reluctantly, in which there is trouble so many times."""
    kwargs = {**folders, "what": what, "times": times, "step": STEP, "forkable": False, **values}
    return EnvironmentConfig(id=id_of(Reluctant), kwargs=kwargs)


def branched(environment: EnvironmentConfig) -> list[StateResult]:
    with supervised(environment, CollectConfig(k=K, restore="snapshot"), TRAJECTORY) as supervisor:
        return list(supervisor.branch(whole(TRAJECTORY)))


def faults_of(results: list[StateResult]) -> list[Fault]:
    """Return all faults; nothing is missing for them."""
    for step, result in enumerate(results):
        outcomes = [*result.outcomes, *([result.expert_outcome] if result.expert_outcome else [])]
        assert len(outcomes) == K + 1
        for outcome in outcomes:
            assert outcome.observation == shown("game 1", 7, [*["press 0"] * step, outcome.action])
    return [fault for result in results for fault in result.faults]


@pytest.mark.parametrize(
    ("ends_process", "words"), [(False, "the server is not up"), (True, "exit status 3")], ids=["raises", "ends"]
)
def test_an_environment_that_cannot_be_made_at_first_is_made_again(
    folders: dict[str, str], ends_process: bool, words: str
) -> None:
    (fault,) = faults_of(branched(environment_of(folders, refused=[0], ends_process=ends_process)))
    assert (fault.ref, fault.kind, fault.action) == (StateRef(0, 0), "start", None)
    assert words in fault.message
    assert len(list(Path(folders["makings"]).iterdir())) == 2


@pytest.mark.parametrize(
    ("what", "ends_process", "kinds"),
    [("fail", False, ["raised", "start"]), ("leave", False, ["died", "start"]), ("leave", True, ["died", "start"])],
    ids=["in-the-host", "in-another-host", "in-a-third-host"],
)
def test_one_that_cannot_be_made_in_the_middle_is_made_again(
    folders: dict[str, str], what: str, ends_process: bool, kinds: list[str]
) -> None:
    environment = environment_of(folders, what, times=1, refused=[1], ends_process=ends_process)
    faults = faults_of(branched(environment))
    assert sorted(fault.kind for fault in faults) == kinds
    assert {fault.action for fault in faults} == {None}
    assert len(list(Path(folders["makings"]).iterdir())) == 3


@pytest.mark.parametrize("first", [0, 1], ids=["at-the-start", "in-the-middle"])
@pytest.mark.parametrize("what", ["fail", "leave"])
def test_one_that_can_never_be_made_again_ends_the_stage_with_the_reason(
    folders: dict[str, str], what: str, first: int
) -> None:
    with pytest.raises(EnvError, match=NOT_UP):
        branched(environment_of(folders, what, times=1, refused=list(range(first, 99))))
    assert len(list(Path(folders["makings"]).iterdir())) == first + TRIES


def test_one_that_always_ends_its_process_is_named(folders: dict[str, str]) -> None:
    with pytest.raises(BranchError, match=r"Reluctant-v0 could not be started: .*exit status 3"):
        branched(environment_of(folders, refused=list(range(99)), ends_process=True))
    assert len(list(Path(folders["makings"]).iterdir())) == TRIES


@pytest.mark.usefixtures("cluster")
def test_a_collection_counts_what_could_not_be_made_at_first(tmp_path: Path, folders: dict[str, str]) -> None:
    environment = environment_of(folders, times=1, refused=[0, 2])
    config = CollectConfig(k=K, restore="snapshot", workers=1)
    result = Collection(tmp_path / "store", [TRAJECTORY], environment, config, {}).run(quiet=True)
    assert (result.branches, result.lost, result.failed) == (LENGTH * (K + 1), 0, 0)
    assert result.faults == {"raised": 1, "start": 2}
