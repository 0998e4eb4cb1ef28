"""States of an expert: the same as those of an episode with the same actions, without the thoughts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.prompts import BARE_FORM

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExpertFileError
from verl_ee.experience.expert_states import expert_states
from verl_ee.prompts.state import EpisodeHistory, State, Turn


@pytest.mark.parametrize("length", [0, 1, 3, 100])
def test_an_episode_sees_what_an_expert_saw(length: int) -> None:
    trajectory = Household().expert_trajectory("train/0")
    states = expert_states(trajectory, length)
    steps = trajectory.steps
    assert len(states) == len(steps)
    for index, state in enumerate(states):
        past = tuple(
            Turn(step.observation, step.action, admissible_actions=step.admissible_actions)
            for step in steps[max(0, index - length) : index]
        )
        step = steps[index]
        assert state == State(trajectory.instruction, past, step.observation, step.admissible_actions, index)

    env = Household()
    observation, info = env.reset(options={"task": "train/0"})
    episode = EpisodeHistory(info["task"], length)
    for step, expected in zip(steps, states, strict=True):
        state = episode.state(observation, list(info["admissible_actions"]))
        assert state == expected
        assert BARE_FORM.policy_prompt(state) == BARE_FORM.policy_prompt(expected)
        episode.act(state, step.action)
        observation, _, _, _, info = env.step(step.action)


def test_thoughts_of_an_expert_are_no_part_of_a_state() -> None:
    steps = (ExpertStep("o", "a", "secret"), ExpertStep("p", "b", "secret"))
    trajectory = ExpertTrajectory("x/Y-v0", "1", "t", "t", steps, "secret", True)
    assert "secret" not in str([BARE_FORM.policy_prompt(state) for state in expert_states(trajectory, 5)])


def test_states_of_an_open_instruction_are_refused() -> None:
    trajectory = replace(Household().expert_trajectory("train/0"), instruction=None)
    with pytest.raises(ExpertFileError, match="task 'train/0' in verl_ee/Household-v0 leaves its instruction open"):
        expert_states(trajectory, 5)
