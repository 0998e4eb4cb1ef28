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
        valid: whether the environment took the action; None where it does not say.
        done: whether the episode ended with it.
        outcome_class: the class that the environment gives it, empty where it gives none.
    """

    action: str
    observation: str
    valid: bool | None
    done: bool
    outcome_class: str = ""

    @property
    def refused(self) -> bool:
        """Whether the environment said that it did not take the action."""
        return self.valid is False

    def difference(self, later: Outcome) -> str:
        """Return in what a later outcome of the same action differs, with both values; empty if in nothing.

        Ways to write the action are no difference.
        """
        for name in ("observation", "valid", "done", "outcome_class"):
            before, after = getattr(self, name), getattr(later, name)
            if before != after:
                return f"{name} was {before!r} and is {after!r}"
        return ""


def class_of(outcome: Outcome, observation_before: str) -> str:
    """Return the class of an outcome: the environment's own, else `REFUSED`, `NO_CHANGE` or `CHANGED`.

    Args:
        outcome: the outcome.
        observation_before: the observation of the state in which the action was executed.
    """
    if outcome.outcome_class:
        return outcome.outcome_class
    if outcome.refused:
        return REFUSED
    return NO_CHANGE if outcome.observation == observation_before else CHANGED
