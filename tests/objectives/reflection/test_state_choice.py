"""The states that get a rationale: those that an expert had not solved yet, and that meet the conditions of a job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from support.rationale_worlds import HISTORY, branch, trajectory

from verl_ee.errors import ExampleError
from verl_ee.objectives.reflection.situations import Situation, situations
from verl_ee.objectives.reflection.state_choice import choose_states


def walk(
    *solved: bool | None, changed: str = "", refused: Collection[int] = (), classes: Sequence[str] = ()
) -> list[Situation]:
    """The states of an expert who says in which of them the task was solved.

    Args:
        solved: one per state.
        changed: `y` for each state whose observation the expert's action changes, `n` for the others.
        refused: states in which the environment refuses the action.
        classes: class that the environment gives each outcome; none: it gives none.
    """
    actions = [f"go {number}" for number in range(len(solved))]
    expert = trajectory(*actions)
    steps = [replace(step, solved=known) for step, known in zip(expert.steps, solved, strict=True)]
    outcomes = ["Elsewhere." if kind == "y" else f"Room {number}." for number, kind in enumerate(changed or "y" * 9)]
    branches = [
        branch(
            action,
            outcomes[number],
            proposer="expert",
            step=number,
            valid=number not in refused,
            outcome_class=classes[number] if classes else "",
        )
        for number, action in enumerate(actions)
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


def test_what_changed_is_for_the_class_of_the_outcome_to_say() -> None:
    states = walk(None, None, None, changed="yyn", refused=[1])
    assert [item.ref.step for item in choose_states(states, ("changed",)).situations] == [0]
    # A world that says it itself.
    states = walk(None, None, None, None, changed="nyyn", classes=["moved", "no change", "refused", "no change"])
    choice = choose_states(states, ("changed",))
    assert [item.ref.step for item in choice.situations] == [0]
    assert choice.left_out == {"the expert's action changed nothing": 3}


def test_states_of_which_nobody_knows_whether_the_task_was_solved_are_left_out_on_demand() -> None:
    choice = choose_states(walk(None, False, True, None), ("unsolved",))
    assert [item.ref.step for item in choice.situations] == [1]
    assert choice.line == (
        "3 of 4 states get no rationale: 2 because nobody knows whether the task was solved, "
        "1 because the task was solved already"
    )
    assert choose_states(walk(False, False), ("unsolved",)).line == ""


@pytest.mark.parametrize(
    ("solved", "changed", "conditions"), [(True, "yy", ()), (None, "nn", ("changed",)), (None, "yy", ("unsolved",))]
)
def test_conditions_that_leave_nothing_are_refused(
    solved: bool | None, changed: str, conditions: tuple[str, ...]
) -> None:
    with pytest.raises(ExampleError, match=r"2 of 2 states get no rationale.*early_experience.reflection.states"):
        choose_states(walk(solved, solved, changed=changed), conditions)
