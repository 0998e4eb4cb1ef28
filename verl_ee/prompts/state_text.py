"""The plain text of a state, which writers and the world model are shown in every format."""

from __future__ import annotations

from verl_ee.prompts.state import State


def state_text(state: State, *, thoughts: bool = False) -> str:
    """Return the text of a state: task, past turns, observation and listed actions, one below the other.

    Args:
        state: the state.
        thoughts: whether past turns have their thoughts.
    """
    lines = [f"Task: {state.task}"] if state.task else []
    for turn in state.history:
        thought = [turn.thought] if thoughts and turn.thought else []
        lines += [turn.observation, *thought, f"> {turn.action}"]
    lines.append(listing(state.observation, state.admissible_actions))
    return "\n".join(lines)


def listing(observation: str, actions: tuple[str, ...] | None) -> str:
    """Return an observation, and below it the actions that the environment lists, if it lists any."""
    return observation if actions is None else "\n".join([observation, "You can:", *actions])
