"""The state of an agent: everything that it sees before it acts, the same for experts, rollouts and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One past step.

    Attributes:
        observation: the observation before the action.
        action: the action.
        thought: what the agent thought before it acted; empty if nothing is known.
        admissible_actions: actions that the environment listed then, or None where it cannot.
    """

    observation: str
    action: str
    thought: str = ""
    admissible_actions: tuple[str, ...] | None = None


@dataclass(frozen=True)
class State:
    """Everything that an agent may see before it acts.

    Attributes:
        task: the instruction that the agent was given.
        history: past turns, oldest first, cut to the length that a prompt shows.
        observation: the latest observation.
        admissible_actions: actions that the environment lists, or None where it cannot.
        steps: number of past turns, also of those that the history leaves out.
    """

    task: str
    history: tuple[Turn, ...]
    observation: str
    admissible_actions: tuple[str, ...] | None = None
    steps: int = 0


def recent(history: Sequence[Turn], length: int | None) -> tuple[Turn, ...]:
    """Return the last `length` turns, oldest first; all if it is None."""
    if length is None:
        return tuple(history)
    return tuple(history[-length:]) if length > 0 else ()


class EpisodeHistory:
    """The history of one episode, and the states that follow from it."""

    def __init__(self, task: str, history_length: int | None) -> None:
        """Begin without past turns.

        Args:
            task: the instruction that the agent was given.
            history_length: past turns in a state; None: all of them.
        """
        self._task, self._length = task, history_length
        self._history: list[Turn] = []

    def state(self, observation: str, admissible_actions: Sequence[str] | None) -> State:
        """Return the state in which `observation` is the latest."""
        admissible = None if admissible_actions is None else tuple(admissible_actions)
        return State(self._task, recent(self._history, self._length), observation, admissible, len(self._history))

    def act(self, state: State, action: str, thought: str | None = None) -> None:
        """Record that `action` was taken in `state`, the latest.

        Args:
            state: the state in which it was taken.
            action: the action.
            thought: what the agent thought before, if it is known.
        """
        self._history.append(Turn(state.observation, action, thought or "", state.admissible_actions))
