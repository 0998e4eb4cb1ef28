"""Which run this is, which stages have finished, and how far training got."""

from __future__ import annotations

from dataclasses import dataclass

HAND_OVER = "hand_over"


@dataclass(frozen=True)
class StageProgress:
    """How far a stage was trained.

    Attributes:
        step: optimizer steps taken, whose result is saved.
        total: optimizer steps of the stage.
        examples: hash of what it learns from.
    """

    step: int
    total: int
    examples: str
