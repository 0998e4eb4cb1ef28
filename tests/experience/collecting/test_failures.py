"""Failures of a collection: counted by kind, and refused where they are more than the config allows."""

from __future__ import annotations

import pytest

from verl_ee.config import CollectConfig
from verl_ee.errors import BranchError
from verl_ee.experience.branching.protocol import Fault
from verl_ee.experience.collecting.failures import Failures
from verl_ee.experience.state_ref import StateRef

STATES, ACTIONS = 10, 40


def failures(lost: float = 0.0, failed: float = 0.0) -> Failures:
    return Failures(CollectConfig(max_mismatch=lost, max_failed=failed), "a/B-v0", STATES)


def fault(step: int, action: str | None = None, kind: str = "raised") -> Fault:
    return Fault(StateRef(0, step), kind, f"message {step}", action)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_lost_states_are_allowed_as_the_share_says(count: int) -> None:
    allowing, strict = failures(lost=count / STATES), failures(lost=(count - 0.5) / STATES)
    for step in range(count):
        for item in (allowing, strict):
            item.add_lost_state(StateRef(0, step), fault(step))
    allowing.check(ACTIONS)
    with pytest.raises(BranchError, match=f"{count} of {STATES} expert states could not be reached again"):
        strict.check(ACTIONS)


def test_only_faults_with_an_action_are_failed_actions() -> None:
    item = failures()
    item.add_failed_actions(StateRef(0, 1), [fault(1), fault(1, "press 1"), fault(1, "press 1", "died")])
    assert item.failed == {(StateRef(0, 1), "press 1"): fault(1, "press 1", "died")}
    with pytest.raises(BranchError, match=f"1 of {ACTIONS} actions could not be executed.*envs check a/B-v0"):
        item.check(ACTIONS)


def test_an_action_that_failed_here_keeps_its_own_fault() -> None:
    item = failures()
    item.add_failed_actions(StateRef(0, 1), [fault(1, "press 1")])
    for step in (1, 2):
        item.add_unshared_action(StateRef(0, step), "press 1")
    assert [item.failed[StateRef(0, step), "press 1"].kind for step in (1, 2)] == ["raised", "shared"]


def test_faults_are_counted_by_kind_and_the_first_are_shown() -> None:
    item = failures()
    faults = [fault(step, "press 1") for step in (4, 2, 3, 1)]
    item.count([*faults, fault(5, None, "died")])
    assert item.kinds == {"raised": 4, "died": 1}
    for one in faults:
        item.add_failed_actions(one.ref, [one])
    with pytest.raises(BranchError) as raised:
        item.check(ACTIONS)
    shown = str(raised.value).splitlines()[1:]
    assert shown == [f"  trajectory 0, step {step}, action 'press 1': message {step}" for step in (1, 2, 3)]


def test_an_action_with_two_outcomes_is_a_failed_one_that_tells_what_to_do() -> None:
    item = failures(failed=1 / ACTIONS)
    item.add_conflict(StateRef(0, 1), "press 1", None)
    assert (item.failed, item.kinds) == ({}, {})
    for _ in range(2):
        item.add_conflict(StateRef(0, 1), "press 1", "observation was 'a' and is 'b'")
        item.add_unshared_action(StateRef(0, 1), "press 1")
    assert item.kinds == {"conflict": 1}
    item.check(ACTIONS)
    item.add_conflict(StateRef(0, 2), "press 2", "done was False and is True")
    with pytest.raises(BranchError) as raised:
        item.check(ACTIONS)
    for word in (f"2 of {ACTIONS} actions", "nondeterministic=True", "'press 1': observation was 'a' and is 'b'"):
        assert word in str(raised.value)
    other = failures()
    other.add_failed_actions(StateRef(0, 1), [fault(1, "press 1")])
    with pytest.raises(BranchError) as raised:
        other.check(ACTIONS)
    assert "nondeterministic=True" not in str(raised.value)
