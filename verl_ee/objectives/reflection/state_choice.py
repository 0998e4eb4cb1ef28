"""The states that get a rationale: those that an expert had not solved yet, and that meet the conditions of a job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from verl_ee.config.base import ROOT
from verl_ee.errors import ExampleError
from verl_ee.experience.outcome import NO_CHANGE, REFUSED, class_of
from verl_ee.objectives.reflection.situations import Situation

SOLVED, UNKNOWN = "the task was solved already", "nobody knows whether the task was solved"
UNCHANGED = "the expert's action changed nothing"
"""Why a state is left out."""


@dataclass(frozen=True)
class StateChoice:
    """The states that get a rationale, and how many do not.

    Attributes:
        situations: those that get one, in their order.
        left_out: number of the others, by the reason.
    """

    situations: list[Situation]
    left_out: dict[str, int]

    @property
    def line(self) -> str:
        """The numbers as a line of the log; empty if all states get a rationale."""
        if not self.left_out:
            return ""
        count = sum(self.left_out.values())
        reasons = ", ".join(f"{number} because {reason}" for reason, number in self.left_out.items())
        return f"{count} of {count + len(self.situations)} states get no rationale: {reasons}"


def choose_states(situations: Sequence[Situation], conditions: Collection[str]) -> StateChoice:
    """Return the states that get a rationale.

    An expert who goes on after the task was solved shows nothing, so these states are always left out.

    Args:
        situations: all states.
        conditions: `reflection.states` of a job. `changed` leaves out a state where the expert's action is of the class
            refused or no change (see `class_of`). `unsolved` leaves out a state of which it is not known whether the
            task was solved in it.

    Raises:
        ExampleError: if no state is left.
    """
    kept: list[Situation] = []
    left_out: dict[str, int] = {}
    for item in situations:
        reason = _why_left_out(item, conditions)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            kept.append(item)
    choice = StateChoice(kept, left_out)
    if not kept:
        raise ExampleError(
            f"{choice.line}. Nothing is left to reflect on: drop a condition of {ROOT}.reflection.states, or take "
            "reflection out of the stages."
        )
    return choice


def _why_left_out(item: Situation, conditions: Collection[str]) -> str:
    if item.solved:
        return SOLVED
    if "unsolved" in conditions and item.solved is None:
        return UNKNOWN
    unchanged = class_of(item.expert_branch.outcome, item.state.observation) in (NO_CHANGE, REFUSED)
    return UNCHANGED if unchanged and "changed" in conditions else ""
