"""Prompt formats: how a state becomes a conversation, and how a response becomes an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict, runtime_checkable

from verl_ee.prompts.response import Response
from verl_ee.prompts.state import State


class Message(TypedDict):
    """A chat message in OpenAI form."""

    role: str
    content: str


@runtime_checkable
class PromptFormat(Protocol):
    """The form of everything that a policy reads and writes, the same in collecting, training, rollouts and export.

    Attributes:
        answer_mark: text by which a response shows its action. A prompt that names it says how to answer.
        system: system message; empty: none.
        instruction: text that tells the policy how to answer; empty: none.
    """

    answer_mark: str
    system: str
    instruction: str

    def policy_prompt(self, state: State) -> list[Message]:
        """Return the messages that ask the policy for an action in a state."""

    def response(self, action: str, thought: str | None = None) -> str:
        """Return the response that takes an action, after a thought if there is one."""

    def read(self, text: str, listed: Sequence[str] | None = None) -> Response:
        """Take a response apart. Never raises: a response without an action has `action=None`.

        Args:
            text: the response.
            listed: actions that the environment lists; None where it lists none.
        """

    def world_model_prompt(self, state: State, action: str) -> list[Message]:
        """Return the messages that ask for the outcome of an action in a state."""

    def outcome(self, observation: str) -> str:
        """Return the answer to these messages, which must not be read as an action."""
