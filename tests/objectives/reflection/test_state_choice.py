"""The states that get a rationale: those that an expert had not solved yet, and that meet the conditions of a job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.rationale_worlds import HISTORY, branch, trajectory

from verl_ee.errors import ExampleError
from verl_ee.objectives.reflection.situations import Situation, situations
from verl_ee.objectives.reflection.state_choice import choose_states


def walk(*solved: bool | None, changed: str = "") -> list[Situation]:
    """The states of an expert who says in which of them the task was solved.

    Args:
        solved: one per state.
        changed: `y` for each state whose observation the expert's action changes, `n` for the others.
    """
    actions = [f"go {number}" for number in range(len(solved))]
    expert = trajectory(*actions)
    steps = [replace(step, solved=known) for step, known in zip(expert.steps, solved, strict=True)]
    outcomes = ["Elsewhere." if kind == "y" else f"Room {number}." for number, kind in enumerate(changed or "y" * 9)]
    branches = [
        branch(action, outcomes[number], proposer="expert", step=number) for number, action in enumerate(actions)
    ]
    return situations([replace(expert, steps=tuple(steps))], branches, HISTORY)


def test_states_after_the_task_was_solved_never_get_a_rationale() -> None:
    choice = choose_states(walk(False, None, True, True), ())
    assert [item.ref.step for item in choice.situations] == [0, 1]
    assert choice.line == "2 of 4 states get no rationale: 2 because the task was solved already"


def test_all_states_get_a_rationale_where_nothing_was_solved_and_nothing_is_asked() -> None:
    states = walk(None, None, False, changed="nnn")
    choice = choose_states(states, ())
    assert (choice.situations, choice.line) == (states, "")


def test_states_whose_action_changes_nothing_are_left_out_on_demand() -> None:
    states = walk(None, None, True, None, changed="ynny")
    choice = choose_states(states, ("changed",))
    assert [item.ref.step for item in choice.situations] == [0, 3]
    assert choice.line == (
        "2 of 4 states get no rationale: 1 because the expert's action changed nothing, "
        "1 because the task was solved already"
    )


def test_it_is_said_where_nobody_knows_whether_a_state_was_solved() -> None:
    choice = choose_states(walk(None, False, True, None), ("unsolved",))
    assert [item.ref.step for item in choice.situations] == [0, 1, 3]
    assert choice.line.endswith("; 2 states stay, though nobody knows whether the task was solved in them")
    assert choose_states(walk(False, False), ("unsolved",)).line == ""


@pytest.mark.parametrize(("solved", "changed", "conditions"), [(True, "yy", ()), (None, "nn", ("changed",))])
def test_conditions_that_leave_nothing_are_refused(
    solved: bool | None, changed: str, conditions: tuple[str, ...]
) -> None:
    with pytest.raises(ExampleError, match=r"2 of 2 states get no rationale.*early_experience.reflection.states"):
        choose_states(walk(solved, solved, changed=changed), conditions)
