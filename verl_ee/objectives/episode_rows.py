"""Rows of imitation that are whole episodes: a chat that grows, in which every turn of the assistant is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from verl_ee.config.base import ROOT
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_tokens import appended, episode_tokens
from verl_ee.objectives.rows import Row, expert_response
from verl_ee.prompts.format import Message, PromptFormat
from verl_ee.prompts.state import State, Turn

SPOKEN = (("look", "I look around."), ("wait", ""), ("", ""), ("look", "First this.\nThen that."), ("end", ""))
"""Turns that a policy may write: with a thought and without one, and without an action."""


def episode_rows(trajectories: Iterable[ExpertTrajectory], form: PromptFormat) -> Iterator[Row]:
    """Yield one row per expert trajectory: its whole chat, up to the step that solved the task.

    Raises:
        ExampleError: if the format shows past turns in another way than it showed them at first, or a rollout would
            read another action from a response.
    """
    for index, trajectory in enumerate(trajectories):
        row = episode_row(trajectory, form, f"trajectory {index}")
        if row is not None:
            yield row


def episode_row(trajectory: ExpertTrajectory, form: PromptFormat, provenance: str) -> Row | None:
    """Return the row of one trajectory; None if its task was solved from the start.

    Raises:
        ExampleError: as `episode_rows`.
    """
    said: list[Message] = []
    for index, state in enumerate(expert_states(trajectory, None)):
        step, where = trajectory.steps[index], f"{provenance}, step {index}"
        if step.solved:
            break
        asked = form.policy_prompt(state)
        if said:
            try:
                appended(said[:-1], said[-1]["content"], asked)
            except ExampleError as error:
                raise ExampleError(f"{where}: {error}") from None
        response = expert_response(form, step.action, step.thought, state, where)
        said = [*asked, {"role": "assistant", "content": response}]
    return Row(tuple(said[:-1]), said[-1]["content"], "imitation", provenance, turns="all") if said else None


def check_growing(form: PromptFormat, encoder: Encoder) -> None:
    """Refuse a format or a chat template in which an episode is no sequence that grows, whatever a policy says in it.

    Raises:
        ExampleError: naming what changes, and what to do.
    """
    turns = [
        Turn(f"You see {index}.", action, thought, ("look", "wait")) for index, (action, thought) in enumerate(SPOKEN)
    ]
    said: list[Message] = []
    try:
        for index, turn in enumerate(turns):
            asked = form.policy_prompt(
                State("Look around.", tuple(turns[:index]), turn.observation, turn.admissible_actions, index)
            )
            if said:
                appended(said[:-1], said[-1]["content"], asked)
            said = [*asked, {"role": "assistant", "content": form.response(turn.action, turn.thought)}]
        episode_tokens(encoder, said)
    except ExampleError as error:
        raise ExampleError(f"{ROOT}.samples=episode: {error}") from None
