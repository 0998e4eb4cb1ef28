"""The check of an environment: what its expert, every method to restore a state and `auto` come to."""

from __future__ import annotations

from dataclasses import replace

from support.games import Dice, Game, HollowGame, LaboriousGame, expert, id_of

from verl_ee.config import EnvironmentConfig
from verl_ee.experience.branching.environment_check import ALTERNATIVES, check_environment
from verl_ee.experience.branching.protocol import RESTORE_METHODS

LENGTH = 4
BRANCHES = LENGTH * (ALTERNATIVES + 1)


def test_a_check_tries_every_method_and_says_which_one_auto_chooses() -> None:
    kwargs = {"forkable": True, "reset_rounds": 1_000_000}
    check = check_environment(EnvironmentConfig(id=id_of(LaboriousGame), kwargs=kwargs), expert(length=LENGTH))
    assert (check.good, check.problem, check.steps, check.automatic) == (True, "", LENGTH, "fork")
    snapshot, fork, replay = check.trials
    assert [trial.restore for trial in check.trials] == list(RESTORE_METHODS)
    assert "has no snapshot()" in snapshot.problem
    assert [(trial.problem, trial.branches) for trial in (fork, replay)] == [("", BRANCHES)] * 2
    assert min(check.reset_milliseconds, check.step_milliseconds, fork.milliseconds, replay.milliseconds) > 0


def test_a_method_that_does_not_give_the_state_back_is_not_what_auto_chooses() -> None:
    environment = EnvironmentConfig(id=id_of(HollowGame), kwargs={"forkable": False})
    check = check_environment(environment, expert(length=LENGTH))
    assert (check.good, check.automatic) == (True, "replay")


def test_an_environment_that_offers_no_method_cannot_be_branched() -> None:
    environment = EnvironmentConfig(id=id_of(Dice), kwargs={"forkable": False})
    check = check_environment(environment, expert(length=LENGTH))
    assert (check.good, check.automatic) == (False, "")
    assert all(trial.problem for trial in check.trials)


def test_an_expert_who_saw_something_else_is_the_problem() -> None:
    wrong = replace(expert(length=LENGTH), final_observation="You see a dragon.")
    check = check_environment(EnvironmentConfig(id=id_of(Game)), wrong)
    assert not check.good
    assert "You see a dragon." in check.problem
