"""The states of an expert trajectory, as an agent in the same episode would see them."""

from __future__ import annotations

from verl_ee.envs import ExpertTrajectory
from verl_ee.prompts.state import EpisodeHistory, State


def expert_states(trajectory: ExpertTrajectory, history_length: int) -> list[State]:
    """Return the state before each step of an expert trajectory.

    Args:
        trajectory: the trajectory.
        history_length: past turns in a state.
    """
    episode = EpisodeHistory(trajectory.instruction, history_length)
    states = []
    for step in trajectory.steps:
        states.append(episode.state(step.observation, step.admissible_actions))
        episode.act(step.observation, step.action)
    return states
