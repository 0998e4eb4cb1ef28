"""The outcome of an action: the one record that workers send, the store keeps and examples are made of."""

from __future__ import annotations

from dataclasses import dataclass


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
