"""The states of an expert trajectory, as an agent in the same episode would see them."""

from __future__ import annotations

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExpertFileError
from verl_ee.prompts.state import EpisodeHistory, State


def expert_states(trajectory: ExpertTrajectory, history_length: int | None) -> list[State]:
    """Return the state before each step of an expert trajectory.

    Args:
        trajectory: the trajectory.
        history_length: past turns in a state; None: all.

    Raises:
        ExpertFileError: if the instruction is open.
    """
    episode = EpisodeHistory(instruction_of(trajectory), history_length)
    states = []
    for step in trajectory.steps:
        states.append(episode.state(step.observation, step.admissible_actions))
        episode.act(states[-1], step.action, step.thought)
    return states


def instruction_of(trajectory: ExpertTrajectory) -> str:
    """Return the instruction of an expert trajectory.

    Raises:
        ExpertFileError: if it is open.
    """
    if trajectory.instruction is None:
        raise ExpertFileError(
            f"The expert trajectory of task {trajectory.task!r} in {trajectory.environment} leaves its instruction "
            "open. `verl-ee experts complete` takes it from the environment; or write it into the expert file."
        )
    return trajectory.instruction
