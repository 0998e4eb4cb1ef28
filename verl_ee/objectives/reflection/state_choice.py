"""The states that get a rationale: those that an expert had not solved yet, and that meet the conditions of a job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from verl_ee.config.base import ROOT
from verl_ee.errors import ExampleError
from verl_ee.objectives.reflection.situations import Situation

SOLVED, UNCHANGED = "the task was solved already", "the expert's action changed nothing"
"""Why a state is left out."""


@dataclass(frozen=True)
class StateChoice:
    """The states that get a rationale, and how many do not.

    Attributes:
        situations: those that get one, in their order.
        left_out: number of the others, by the reason.
        unknown: number of the states of which nobody knows whether the task was solved, if that was asked.
    """

    situations: list[Situation]
    left_out: dict[str, int]
    unknown: int

    @property
    def line(self) -> str:
        """The numbers as a line of the log; empty if all states get a rationale."""
        parts = []
        if self.left_out:
            count = sum(self.left_out.values())
            reasons = ", ".join(f"{number} because {reason}" for reason, number in self.left_out.items())
            parts.append(f"{count} of {count + len(self.situations)} states get no rationale: {reasons}")
        if self.unknown:
            parts.append(f"{self.unknown} states stay, though nobody knows whether the task was solved in them")
        return "; ".join(parts)


def choose_states(situations: Sequence[Situation], conditions: Collection[str]) -> StateChoice:
    """Return the states that get a rationale.

    An expert who goes on after the task was solved shows nothing, so these states are always left out.

    Args:
        situations: all states.
        conditions: `reflection.states` of a job. `changed` leaves out a state whose observation is the same after the
            expert's action. `unsolved` asks besides that it is known whether the task was solved.

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
    unknown = sum(item.solved is None for item in kept) if "unsolved" in conditions else 0
    choice = StateChoice(kept, left_out, unknown)
    if not kept:
        raise ExampleError(
            f"{choice.line}. Nothing is left to reflect on: drop a condition of {ROOT}.reflection.states, or take "
            "reflection out of the stages."
        )
    return choice


def _why_left_out(item: Situation, conditions: Collection[str]) -> str:
    if item.solved:
        return SOLVED
    unchanged = item.expert_branch.outcome.observation == item.state.observation
    return UNCHANGED if unchanged and "changed" in conditions else ""
