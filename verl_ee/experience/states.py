"""What an agent sees at each step of an episode, the same for experts, rollouts and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.rendering import State, Turn, recent


class Episode:
    """The history of one episode, and the states that follow from it."""

    def __init__(self, task: str, history_length: int) -> None:
        self._task, self._length = task, history_length
        self._history: list[Turn] = []

    def state(self, observation: str, admissible_actions: Sequence[str] | None) -> State:
        """Return the state in which `observation` is the latest."""
        admissible = None if admissible_actions is None else tuple(admissible_actions)
        return State(self._task, recent(self._history, self._length), observation, admissible)

    def act(self, observation: str, action: str) -> None:
        """Record that `action` was taken after `observation`."""
        self._history.append(Turn(observation, action))


def expert_states(trajectory: ExpertTrajectory, history_length: int) -> list[State]:
    """Return the state before each step of an expert trajectory."""
    episode = Episode(trajectory.instruction, history_length)
    states = []
    for step in trajectory.steps:
        states.append(episode.state(step.observation, step.admissible_actions))
        episode.act(step.observation, step.action)
    return states
