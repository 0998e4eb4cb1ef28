"""A position in an expert file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StateRef:
    """A state of an expert trajectory.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
    """

    trajectory: int
    step: int
