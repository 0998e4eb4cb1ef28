"""One text form for states, actions and outcomes, shared by every stage.

Imitation, world model, reflection, GRPO and evaluation all build their chat messages here, so a prompt in training
equals the prompt of a rollout. `verl_ee.prompts.response` is the way back, from a response to an action.
"""

from __future__ import annotations

from typing import TypedDict

from verl_ee.config import PromptConfig
from verl_ee.prompts.state import State

WORLD_MODEL_SYSTEM = "You are the text world. Tell what the action leads to."
ACTION_PREFIX = "Action:"
OUTCOME_OPEN, OUTCOME_CLOSE = "<observation>", "</observation>"


class Message(TypedDict):
    """A chat message in OpenAI form."""

    role: str
    content: str


def render_policy(state: State, prompt: PromptConfig) -> list[Message]:
    """Return the messages that ask the policy for an action in `state`.

    Args:
        state: all that the agent sees.
        prompt: what the messages say besides the state.
    """
    content = state_text(state)
    if prompt.instruction:
        content = f"{content}\n\n{prompt.instruction}"
    system: list[Message] = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def render_world_model(state: State, action: str) -> list[Message]:
    """Return the messages that ask for the outcome of `action` in `state`.

    The system prompt differs from the policy's, and the target is delimited (`render_outcome`), so a policy that
    learned both does not answer with an observation where an action belongs.
    """
    content = f"{state_text(state)}\n{ACTION_PREFIX} {action}"
    return [{"role": "system", "content": WORLD_MODEL_SYSTEM}, {"role": "user", "content": content}]


def render_response(action: str, thought: str | None = None) -> str:
    """Return the response that takes `action`, after `thought` if there is one."""
    # The indentation of a first line survives on a line of its own.
    line = f"{ACTION_PREFIX}\n{action}" if action[:1].isspace() else f"{ACTION_PREFIX} {action}"
    return f"{thought.strip()}\n{line}" if thought and thought.strip() else line


def render_outcome(observation: str) -> str:
    """Return the target of a world-model example."""
    return f"{OUTCOME_OPEN} {observation} {OUTCOME_CLOSE}"


def state_text(state: State) -> str:
    """Return a state as every prompt shows it."""
    lines = [f"Task: {state.task}"] if state.task else []
    for turn in state.history:
        lines += [turn.observation, f"> {turn.action}"]
    lines.append(state.observation)
    if state.admissible_actions is not None:
        lines.append("You can:")
        lines += state.admissible_actions
    return "\n".join(lines)
