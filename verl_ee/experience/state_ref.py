"""The position of a state in an expert file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StateRef:
    """A position in an expert file: the state before a step of a trajectory.

    Attributes:
        trajectory: index of the trajectory in its file.
        step: index of the step.
    """

    trajectory: int
    step: int
