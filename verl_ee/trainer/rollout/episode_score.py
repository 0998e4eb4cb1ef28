"""The score of one episode, and what verl is told about it."""

from __future__ import annotations

from typing import Literal, TypedDict

from verl_ee.trainer.rollout.environments.messages import StepResult


class EpisodeInfo(TypedDict):
    """`reward_extra_info` of an episode.

    Attributes:
        task: id of the task.
        acc: 1 if the task was solved, else 0.
        turns: number of responses.
        no_action: share of the responses that hold no action.
        refused: share of the responses whose action the environment refused.
        over_length: 1 if the episode ended because there was no room for another turn, else 0.
        env_failed: 1 if the episode ended because the environment raised, hung or crashed, else 0.
        env_error: how the environment failed; empty if it did not.
    """

    task: str
    acc: float
    turns: int
    no_action: float
    refused: float
    over_length: int
    env_failed: int
    env_error: str


class EpisodeScore:
    """Adds up an episode turn by turn.

    Attributes:
        value: the score: the last reward or the sum of all; 0 if the environment failed.
        turns: number of responses so far.
        over_length: whether the episode ended because there was no room for another turn.
        failed: whether the environment failed.
    """

    def __init__(self, task: str, reward: Literal["last", "sum"]) -> None:
        """Begin an episode.

        Args:
            task: id of the task.
            reward: which rewards make the score.
        """
        self._task, self._reward = task, reward
        self.turns = self._no_action = self._refused = 0
        self._success, self._error = False, ""
        self.value, self.over_length, self.failed = 0.0, False, False

    def act(self, has_action: bool) -> None:
        """Count a response, and whether it holds an action."""
        self.turns += 1
        self._no_action += not has_action

    def add(self, result: StepResult) -> None:
        """Add what the environment answered to an action."""
        self._refused += result.valid is False
        self.value = result.reward + (self.value if self._reward == "sum" else 0.0)
        # An environment that does not say whether the task is solved rewards the step that solves it.
        self._success = result.reward > 0.0 if result.success is None else result.success

    def fail(self, error: str) -> None:
        """End the episode because the environment failed: nobody knows what it would have come to.

        Args:
            error: how it failed.
        """
        self.value, self._success, self._error, self.failed = 0.0, False, error, True

    def info(self) -> EpisodeInfo:
        """Return what verl is told."""
        turns = max(self.turns, 1)
        return {
            "task": self._task,
            "acc": float(self._success),
            "turns": self.turns,
            "no_action": self._no_action / turns,
            "refused": self._refused / turns,
            "over_length": int(self.over_length),
            "env_failed": int(self.failed),
            "env_error": self._error,
        }
