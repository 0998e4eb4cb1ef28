"""Messages between an episode and the process of its environment: one line of JSON each way."""

from __future__ import annotations

from dataclasses import dataclass


class EnvironmentFailedError(Exception):
    """An environment raised, took too long or ended its process; it costs one episode, and never leaves a worker."""


@dataclass(frozen=True)
class StepResult:
    """The answer of an environment to a reset or a step, without anything that nobody reads.

    An info dict may hold what JSON cannot carry, so its other keys stay in the process of the environment.

    Attributes:
        observation: the observation.
        reward: reward of the step; 0 after a reset.
        ended: whether the episode is over.
        task: the instruction; None where the environment does not say.
        admissible_actions: actions that the environment lists, or None.
        success: whether the task is solved; None where the environment does not say.
        valid: whether the action was understood and possible; None where the environment does not say.
    """

    observation: str
    reward: float = 0.0
    ended: bool = False
    task: str | None = None
    admissible_actions: tuple[str, ...] | None = None
    success: bool | None = None
    valid: bool | None = None
