"""Outcomes: what an environment says of an action and what it leaves open, by every method to restore a state."""

from __future__ import annotations

from typing import Any

import pytest
from support.games import SavedGame, StepReturn, expert, whole

from verl_ee.config import CollectConfig
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.fork import ForkRestore
from verl_ee.experience.branching.protocol import StateRequest, StateResult, WorkUnit
from verl_ee.experience.branching.restore import ReplayRestore, RestoreMethod, SnapshotRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.outcome import Outcome, class_of

METHODS = (SnapshotRestore, ForkRestore, ReplayRestore)


class Telling(SavedGame):
    """A game that says exactly this of every action."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__()
        self.said = said

    def step(self, action: str) -> StepReturn:
        observation, reward, terminated, truncated, info = super().step(action)
        del info["valid"]
        return observation, reward, terminated, truncated, info | self.said


def results_of(said: dict[str, Any], method: type[RestoreMethod], unit: WorkUnit) -> list[StateResult]:
    return list(branch(EnvironmentSession(lambda: Telling(said)), method(), unit, CollectConfig(k=2)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("said", "valid", "outcome_class"),
    [
        ({}, None, ""),
        ({"valid": None}, None, ""),
        ({"valid": True, "outcome_class": None}, True, ""),
        ({"valid": False}, False, ""),
        ({"outcome_class": "over budget"}, None, "over budget"),
        ({"valid": False, "outcome_class": "é"}, False, "é"),
    ],
    ids=str,
)
def test_an_outcome_has_what_the_environment_says_and_nothing_else(
    method: type[RestoreMethod], said: dict[str, Any], valid: bool | None, outcome_class: str
) -> None:
    results = results_of(said, method, whole(expert(length=2)))
    outcomes = [*(outcome for result in results for outcome in result.outcomes)]
    outcomes += [result.expert_outcome for result in results if result.expert_outcome]
    assert len(outcomes) == 6
    assert {(outcome.valid, outcome.outcome_class) for outcome in outcomes} == {(valid, outcome_class)}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("value", "words"),
    [(7, "is int, expected str"), (["refused"], "is list, expected str"), ("half \ud83d", "not valid Unicode")],
    ids=["number", "list", "surrogate"],
)
def test_a_class_that_is_no_text_is_a_fault(method: type[RestoreMethod], value: object, words: str) -> None:
    request = StateRequest(0, ("press 1",), include_expert=False)
    (result,) = results_of({"outcome_class": value}, method, WorkUnit(0, expert(length=2), (request,)))
    assert result.outcomes == ()
    assert [(fault.kind, fault.action) for fault in result.faults] == [("not text", None), ("not text", "press 1")]
    assert all('info["outcome_class"]' in fault.message and words in fault.message for fault in result.faults)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("look", "A hall.", True, False), "no change"),
        (Outcome("go", "A yard.", True, False), "changed"),
        (Outcome("go", "A yard.", None, False), "changed"),
        (Outcome("look", "A hall.", None, True), "no change"),
        (Outcome("fly", "You cannot.", False, False), "refused"),
        (Outcome("fly", "A hall.", False, False), "refused"),
        (Outcome("fly", "A hall.", False, False, "no wings"), "no wings"),
        (Outcome("go", "A hall.", True, False, "changed"), "changed"),
    ],
)
def test_the_class_of_an_outcome_is_the_environment_s_or_what_can_be_seen(outcome: Outcome, expected: str) -> None:
    assert class_of(outcome, "A hall.") == expected
