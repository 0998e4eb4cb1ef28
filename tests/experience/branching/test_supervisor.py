"""What a supervisor makes of an environment that hangs, crashes or raises: two tries, then one fault, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.games import MUCH, TOKENS, Game, SavedTrouble, Stillborn, Trouble, expert, id_of, shown, whole

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.protocol import StateRequest, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.replayer import TRIES
from verl_ee.experience.branching.supervisor import HostSupervisor
from verl_ee.experience.outcome import Outcome

K, LENGTH, STEP = 9, 6, 2
TRAJECTORY = expert("game 1", LENGTH)
SIBLINGS = {action for action in Game().actions if action != "press 0"}
"""With K as large, all of them are alternatives of every state."""


@pytest.fixture(params=["snapshot", "fork", "replay"])
def restore(request: pytest.FixtureRequest) -> str:
    """Hosts die in each, of different things."""
    name: str = request.param
    return name


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where trouble is noted."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def answers_of(restore: str, marks: Path, unit: WorkUnit | None = None, **trouble: Any) -> list[StateResult]:
    """What a supervisor answers about the whole of the game in which there is trouble."""
    # After as many times it is over, so that what tries for ever ends too.
    kwargs = {"forkable": True, "marks": str(marks), "times": 9, **trouble}
    environment = EnvironmentConfig(id=id_of(SavedTrouble if restore == "snapshot" else Trouble), kwargs=kwargs)
    limit = 1.0 if trouble["what"].startswith("hang") else 60.0
    config = CollectConfig.model_validate({"restore": restore, "k": K, "step_timeout": limit})
    supervisor = HostSupervisor(environment, config, TRAJECTORY)
    try:
        assert supervisor.restore == restore
        return list(supervisor.branch(unit or whole(TRAJECTORY, 3)))
    finally:
        supervisor.close()


def check_outcomes(answers: list[StateResult], missing: set[tuple[int, str]]) -> None:
    """Every action of every state has its outcome, except those that are missing."""
    for step, answer in enumerate(answers):
        path = ["press 0"] * step
        found = {done.action: done for done in (*answer.outcomes, *([answer.expert] if answer.expert else []))}
        assert set(found) == {action for action in (*SIBLINGS, "press 0") if (step, action) not in missing}
        for action, done in found.items():
            assert done == Outcome(action, shown("game 1", 7, [*path, action]), action != "jam", action == "stop")


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
    answers = answers_of(restore, marks, what=what)
    assert [answer.step for answer in answers] == list(range(LENGTH))
    check_outcomes(answers, {(STEP, "press 5")})
    faults = [fault for answer in answers for fault in answer.faults]
    assert [fault.action for fault in faults] == [None] * (TRIES - 1) + ["press 5"]
    for fault in faults:
        assert (fault.trajectory, fault.step, fault.kind) == (3, STEP, kind)
        assert words[restore] in fault.message
    assert "trajectory 3, step 2, action 'press 5': " in str(faults[-1])
    assert len(list(marks.iterdir())) == TRIES


@pytest.mark.parametrize("what", ["hang", "fail", "leave", "kill", "kill_host"])
def test_an_action_that_fails_once_is_tried_again(restore: str, marks: Path, what: str) -> None:
    answers = answers_of(restore, marks, what=what, times=1)
    check_outcomes(answers, set())
    (fault,) = (fault for answer in answers for fault in answer.faults)
    assert (fault.trajectory, fault.step, fault.action) == (3, STEP, None)


@pytest.mark.parametrize("way", ["snapshot", "fork"], indirect=True)
def test_an_environment_that_takes_the_alarm_for_itself_is_ended_from_outside(restore: str, marks: Path) -> None:
    answers = answers_of(restore, marks, what="hang_deaf")
    check_outcomes(answers, {(STEP, "press 5")})
    faults = [fault for answer in answers for fault in answer.faults]
    assert [(fault.kind, fault.action) for fault in faults] == [("time limit", None), ("time limit", "press 5")]
    assert all("--step-timeout=1 s" in fault.message for fault in faults)
    assert len(list(marks.iterdir())) == TRIES


def test_what_a_host_spent_before_it_died_is_counted(restore: str, marks: Path) -> None:
    log = marks.parent / "log"
    # Where nothing is declared, every host that is to fork tries it along the trajectory.
    answers = answers_of(restore, marks, what="kill_host", times=1, log=str(log), forkable=None)
    check_outcomes(answers, set())
    trial = 2 * LENGTH if restore == "fork" else 0
    usage = sum((answer.usage for answer in answers), Usage())
    assert usage.env_steps + trial == len(log.read_text().splitlines())


@pytest.mark.parametrize(
    ("what", "step"), [("leave", 0), ("leave", STEP), ("leave", LENGTH - 1), ("fail", STEP), ("fail", LENGTH - 1)]
)
def test_where_the_expert_cannot_go_on_what_was_done_before_is_kept(
    restore: str, marks: Path, what: str, step: int
) -> None:
    answers = answers_of(restore, marks, what=what, step=step, action="press 0")
    assert [answer.step for answer in answers] == list(range(LENGTH))
    assert [answer.lost for answer in answers] == [number > step for number in range(LENGTH)]
    check_outcomes(answers[: step + 1], {(step, "press 0")})
    for answer in answers[step + 1 :]:
        assert answer.outcomes == ()
        assert answer.faults[-1].kind == {"fail": "raised", "leave": "died"}[what]
    assert answers[step].faults[-1].action == "press 0"


def test_a_unit_after_a_death_goes_on_as_before(marks: Path) -> None:
    environment = EnvironmentConfig(id=id_of(SavedTrouble), kwargs={"what": "kill", "marks": str(marks)})
    supervisor = HostSupervisor(environment, CollectConfig(k=K), TRAJECTORY)
    try:
        check_outcomes(list(supervisor.branch(whole(TRAJECTORY))), {(STEP, "press 5")})
        later = WorkUnit(0, expert("game 1", LENGTH, seed=8), (StateRequest(4, ("press 1",)),))
        (answer,) = supervisor.branch(later)
    finally:
        supervisor.close()
    assert answer.outcomes == (Outcome("press 1", shown("game 1", 8, ["press 0"] * 4 + ["press 1"]), True, False),)


def test_two_actions_that_kill_are_both_left_out(marks: Path) -> None:
    unit = WorkUnit(
        3,
        TRAJECTORY,
        (StateRequest(STEP, ("press 5", "press 6", " press 5")), StateRequest(STEP + 1, ("press 5", "press 6"))),
    )
    first, second = answers_of("snapshot", marks, unit, what="kill")
    assert [done.action for done in first.outcomes] == ["press 6"]
    assert {fault.action for fault in first.faults} <= {None, "press 5", " press 5"}
    assert [done.action for done in second.outcomes] == ["press 5", "press 6"]


@pytest.mark.parametrize(("what", "text"), [("show_much", MUCH), ("show_tokens", TOKENS)])
def test_what_is_shown_comes_back_letter_by_letter(restore: str, marks: Path, what: str, text: str) -> None:
    answers = answers_of(restore, marks, what=what)
    assert not any(answer.faults for answer in answers)
    (odd,) = (done for done in answers[STEP].outcomes if done.action == "press 5")
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
