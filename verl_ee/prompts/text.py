"""One text form for states, actions and outcomes, shared by every stage.

Imitation, world model, reflection, GRPO and evaluation all build their chat messages here, so a prompt in training
equals the prompt of a rollout. The way back, from a response to an action, is here as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from verl_ee.prompts.actions import canonical
from verl_ee.prompts.state import State

POLICY_SYSTEM = "You act in a text world. Answer with one action."
WORLD_MODEL_SYSTEM = "You are the text world. Tell what the action leads to."
ACTION_PREFIX = "Action:"
OUTCOME_OPEN, OUTCOME_CLOSE = "<observation>", "</observation>"


class Message(TypedDict):
    """A chat message in OpenAI form."""

    role: str
    content: str


@dataclass(frozen=True)
class Response:
    """A response of the policy, taken apart.

    Attributes:
        action: the action, or None where the response holds none.
        thought: the text before the action, empty if there is none.
    """

    action: str | None
    thought: str = ""


def render_policy(state: State) -> list[Message]:
    """Return the messages that ask the policy for an action in `state`."""
    return [{"role": "system", "content": POLICY_SYSTEM}, {"role": "user", "content": state_text(state)}]


def render_world_model(state: State, action: str) -> list[Message]:
    """Return the messages that ask for the outcome of `action` in `state`.

    The system prompt differs from the policy's, and the target is delimited (`render_outcome`), so a policy that
    learned both does not answer with an observation where an action belongs.
    """
    content = f"{state_text(state)}\n{ACTION_PREFIX} {action}"
    return [{"role": "system", "content": WORLD_MODEL_SYSTEM}, {"role": "user", "content": content}]


def render_response(action: str, thought: str | None = None) -> str:
    """Return the response that takes `action`, after `thought` if there is one."""
    line = f"{ACTION_PREFIX} {action}"
    return f"{thought.strip()}\n{line}" if thought and thought.strip() else line


def render_outcome(observation: str) -> str:
    """Return the target of a world-model example."""
    return f"{OUTCOME_OPEN} {observation} {OUTCOME_CLOSE}"


def parse_response(text: str) -> Response:
    """Take a response apart; the last line that starts with `Action:` wins.

    Never raises: a response without an action has `action=None`.
    """
    lines = text.strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index].strip()
        if line.startswith(ACTION_PREFIX):
            action = canonical(line[len(ACTION_PREFIX) :])
            return Response(action or None, "\n".join(lines[:index]).strip())
    return Response(None, text.strip())


def state_text(state: State) -> str:
    """Return a state as every prompt shows it."""
    lines = [f"Task: {state.task}"]
    for turn in state.history:
        lines += [turn.observation, f"> {turn.action}"]
    lines.append(state.observation)
    if state.admissible_actions is not None:
        lines.append("You can:")
        lines += state.admissible_actions
    return "\n".join(lines)
