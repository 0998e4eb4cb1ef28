"""Environments that hang, crash or raise under a supervisor: two tries, then one fault, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.games import MUCH, TOKENS, Game, SavedTrouble, Stillborn, Trouble, expert, id_of, shown, whole
from support.hosts import supervised

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.protocol import TRIES, StateRequest, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.supervisor import HostSupervisor
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

K, LENGTH, STEP = 9, 6, 2
TRAJECTORY = expert("game 1", LENGTH)
SIBLINGS = {action for action in Game().actions if action != "press 0"}
"""With K as large as this, all of them are alternatives of every state."""


@pytest.fixture(params=["snapshot", "fork", "replay"])
def restore(request: pytest.FixtureRequest) -> str:
    """Hosts die differently by each method."""
    name: str = request.param
    return name


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The folder in which the games note their trouble."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def results_of(restore: str, marks: Path, unit: WorkUnit | None = None, **trouble: Any) -> list[StateResult]:
    """Return the results of a whole unit of the game in which there is trouble."""
    # The trouble is over after so many times, so that endless tries would end too.
    kwargs = {"forkable": True, "marks": str(marks), "times": 9, **trouble}
    environment = EnvironmentConfig(id=id_of(SavedTrouble if restore == "snapshot" else Trouble), kwargs=kwargs)
    limit = 1.0 if trouble["what"].startswith("hang") else 60.0
    config = CollectConfig.model_validate({"restore": restore, "k": K, "step_timeout": limit})
    with supervised(environment, config, TRAJECTORY) as supervisor:
        assert supervisor.restore == restore
        return list(supervisor.branch(unit or whole(TRAJECTORY, 3)))


def check_outcomes(results: list[StateResult], missing: set[tuple[int, str]]) -> None:
    """Every action of every state has its outcome, except those that are missing."""
    for step, result in enumerate(results):
        path = ["press 0"] * step
        expert_outcomes = [result.expert_outcome] if result.expert_outcome else []
        outcomes = {outcome.action: outcome for outcome in (*result.outcomes, *expert_outcomes)}
        assert set(outcomes) == {action for action in (*SIBLINGS, "press 0") if (step, action) not in missing}
        for action, outcome in outcomes.items():
            assert outcome == Outcome(action, shown("game 1", 7, [*path, action]), action != "jam", action == "stop")


KINDS = [
    ("hang", "time limit", {"snapshot": "--step-timeout=1 s", "fork": "SIGALRM", "replay": "--step-timeout=1 s"}),
    ("fail", "raised", dict.fromkeys(("snapshot", "fork", "replay"), "RuntimeError: no pulse")),
    ("leave", "died", {"snapshot": "exit status 3", "fork": "without an answer", "replay": "exit status 3"}),
    ("kill", "died", dict.fromkeys(("snapshot", "fork", "replay"), "SIGKILL")),
    ("show_surrogate", "not text", dict.fromkeys(("snapshot", "fork", "replay"), "not valid Unicode near")),
    ("show_bytes", "not text", dict.fromkeys(("snapshot", "fork", "replay"), "the observation is bytes, expected str")),
]


@pytest.mark.parametrize(("what", "kind", "words"), KINDS, ids=[kind[0] for kind in KINDS])
def test_an_action_that_always_fails_is_left_out_and_nothing_else(
    restore: str, marks: Path, what: str, kind: str, words: dict[str, str]
) -> None:
    results = results_of(restore, marks, what=what)
    assert [result.ref.step for result in results] == list(range(LENGTH))
    check_outcomes(results, {(STEP, "press 5")})
    faults = [fault for result in results for fault in result.faults]
    assert [fault.action for fault in faults] == [None] * (TRIES - 1) + ["press 5"]
    for fault in faults:
        assert (fault.ref, fault.kind) == (StateRef(3, STEP), kind)
        assert words[restore] in fault.message
    assert "trajectory 3, step 2, action 'press 5': " in str(faults[-1])
    assert len(list(marks.iterdir())) == TRIES


@pytest.mark.parametrize("what", ["hang", "fail", "leave", "kill", "kill_host"])
def test_an_action_that_fails_once_is_tried_again(restore: str, marks: Path, what: str) -> None:
    results = results_of(restore, marks, what=what, times=1)
    check_outcomes(results, set())
    (fault,) = (fault for result in results for fault in result.faults)
    assert (fault.ref, fault.action) == (StateRef(3, STEP), None)


@pytest.mark.parametrize("restore", ["snapshot", "fork"], indirect=True)
def test_an_environment_that_takes_the_alarm_for_itself_is_ended_from_outside(restore: str, marks: Path) -> None:
    results = results_of(restore, marks, what="hang_deaf")
    check_outcomes(results, {(STEP, "press 5")})
    faults = [fault for result in results for fault in result.faults]
    assert [(fault.kind, fault.action) for fault in faults] == [("time limit", None), ("time limit", "press 5")]
    assert all("--step-timeout=1 s" in fault.message for fault in faults)
    assert len(list(marks.iterdir())) == TRIES


def test_what_a_host_spent_before_it_died_is_counted(restore: str, marks: Path) -> None:
    log = marks.parent / "log"
    # Where nothing is declared, every host that is to fork tries it along the trajectory.
    results = results_of(restore, marks, what="kill_host", times=1, log=str(log), forkable=None)
    check_outcomes(results, set())
    trial = 2 * LENGTH if restore == "fork" else 0
    usage = sum((result.usage for result in results), Usage())
    assert usage.env_steps + trial == len(log.read_text().splitlines())


@pytest.mark.parametrize(
    ("what", "step"), [("leave", 0), ("leave", STEP), ("leave", LENGTH - 1), ("fail", STEP), ("fail", LENGTH - 1)]
)
def test_where_the_expert_cannot_go_on_what_was_done_before_is_kept(
    restore: str, marks: Path, what: str, step: int
) -> None:
    results = results_of(restore, marks, what=what, step=step, action="press 0")
    assert [result.ref.step for result in results] == list(range(LENGTH))
    assert [result.lost for result in results] == [number > step for number in range(LENGTH)]
    check_outcomes(results[: step + 1], {(step, "press 0")})
    for result in results[step + 1 :]:
        assert result.outcomes == ()
        assert result.faults[-1].kind == {"fail": "raised", "leave": "died"}[what]
    assert results[step].faults[-1].action == "press 0"


def test_a_unit_after_a_death_goes_on_as_before(marks: Path) -> None:
    environment = EnvironmentConfig(id=id_of(SavedTrouble), kwargs={"what": "kill", "marks": str(marks)})
    with supervised(environment, CollectConfig(k=K, restore="snapshot"), TRAJECTORY) as supervisor:
        check_outcomes(list(supervisor.branch(whole(TRAJECTORY))), {(STEP, "press 5")})
        later = WorkUnit(0, expert("game 1", LENGTH, seed=8), (StateRequest(4, ("press 1",)),))
        (result,) = supervisor.branch(later)
    assert result.outcomes == (Outcome("press 1", shown("game 1", 8, ["press 0"] * 4 + ["press 1"]), True, False),)


def test_two_actions_that_kill_are_both_left_out(marks: Path) -> None:
    unit = WorkUnit(
        3,
        TRAJECTORY,
        (StateRequest(STEP, ("press 5", "press 6", " press 5")), StateRequest(STEP + 1, ("press 5", "press 6"))),
    )
    first, second = results_of("snapshot", marks, unit, what="kill")
    assert [outcome.action for outcome in first.outcomes] == ["press 6"]
    assert {fault.action for fault in first.faults} <= {None, "press 5", " press 5"}
    assert [outcome.action for outcome in second.outcomes] == ["press 5", "press 6"]


@pytest.mark.parametrize(("what", "text"), [("show_much", MUCH), ("show_tokens", TOKENS)])
def test_what_is_shown_comes_back_letter_by_letter(restore: str, marks: Path, what: str, text: str) -> None:
    results = results_of(restore, marks, what=what)
    assert not any(result.faults for result in results)
    (odd,) = (outcome for outcome in results[STEP].outcomes if outcome.action == "press 5")
    assert odd.observation == text


def test_an_environment_that_cannot_be_made_is_named() -> None:
    kwargs = {"what": "no_such_method", "marks": "/"}
    with pytest.raises(EnvError, match="no_such_method"):
        HostSupervisor(EnvironmentConfig(id=id_of(Trouble), kwargs=kwargs), CollectConfig(), TRAJECTORY)
    with pytest.raises(EnvError, match="nothing/Here-v0"):
        HostSupervisor(EnvironmentConfig(id="nothing/Here-v0"), CollectConfig(), TRAJECTORY)


def test_an_environment_that_ends_its_process_when_it_is_made_is_named() -> None:
    with pytest.raises(BranchError, match=r"Stillborn-v0 could not be started: .*exit status 3.*verl-ee envs check"):
        HostSupervisor(EnvironmentConfig(id=id_of(Stillborn)), CollectConfig(), TRAJECTORY)


def test_an_environment_that_ends_its_process_in_a_trial_is_named(marks: Path) -> None:
    kwargs = {"what": "leave", "marks": str(marks), "action": "press 0", "forkable": True}
    environment = EnvironmentConfig(id=id_of(SavedTrouble), kwargs=kwargs)
    words = r"SavedTrouble-v0 ended before .* --restore=auto: .*exit status 3.*name one of snapshot, fork, replay"
    with (
        pytest.raises(BranchError, match=words),
        supervised(environment, CollectConfig(), TRAJECTORY),
    ):
        pass
