"""The outcome of an action: the one record that workers send, the store keeps and examples are made of."""

from __future__ import annotations

from dataclasses import dataclass

REFUSED, NO_CHANGE, CHANGED = "refused", "no change", "changed"
"""Classes of outcomes where an environment names none."""


@dataclass(frozen=True)
class Outcome:
    """An executed action and the response of the environment.

    Attributes:
        action: the action, as it was executed.
        observation: the text that the environment answered.
        valid: whether the environment took the action.
        done: whether the episode ended with it.
    """

    action: str
    observation: str
    valid: bool
    done: bool


def class_of(outcome: Outcome, observation_before: str) -> str:
    """Return the class of an outcome: `REFUSED`, `NO_CHANGE` or `CHANGED`.

    Args:
        outcome: the outcome.
        observation_before: the observation of the state in which the action was executed.
    """
    if not outcome.valid:
        return REFUSED
    return NO_CHANGE if outcome.observation == observation_before else CHANGED
