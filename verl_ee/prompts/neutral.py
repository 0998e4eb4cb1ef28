"""Formats and messages in which text that is data, not the model's own, holds no control tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from verl_ee.prompts.control_tokens import break_control_tokens
from verl_ee.prompts.format import Message, PromptFormat
from verl_ee.prompts.response import THINK_CLOSE, THINK_OPEN, Response
from verl_ee.prompts.state import State

THINK = (THINK_OPEN, THINK_CLOSE)
"""No tokens to every tokenizer; but no format reads an action between them."""


@dataclass(frozen=True)
class ControlTokens:
    """Texts that a tokenizer encodes as tokens of their own.

    Attributes:
        all: all of them. Text of an environment may hold none.
        reserved: those that a model may not write into a message, such as the end of a turn. The others are its own:
            thinking and tool calls.
    """

    all: tuple[str, ...]
    reserved: tuple[str, ...]

    def neutral(self, text: str) -> str:
        """Return a text of an environment with every control token broken."""
        return break_control_tokens(text, (*self.all, *THINK)) if self._any.search(text) else text

    def own(self, text: str) -> str:
        """Return a text of the model with the tokens broken that it may not write."""
        return break_control_tokens(text, self.reserved) if self._any.search(text) else text

    def action(self, text: str) -> str:
        """Return an action with the tokens broken that would end the turn, or turn it into a thought."""
        return break_control_tokens(text, (*self.reserved, *THINK)) if self._any.search(text) else text

    @cached_property
    def _any(self) -> re.Pattern[str]:
        """A quick look: a vocabulary may have hundreds of them, and hardly a text has any."""
        return re.compile("|".join(map(re.escape, (*self.all, *THINK))))

    def in_messages(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages that nobody has gone through yet: what the assistant says is the model's own text."""
        return [
            {
                "role": message["role"],
                "content": (self.own if message["role"] == "assistant" else self.neutral)(message["content"]),
            }
            for message in messages
        ]


class NeutralFormat:
    """Another format, in which the texts of an environment are data: none of them is encoded as a control token.

    Texts of the format itself (instruction, tags, template) stay as they are.
    """

    def __init__(self, form: PromptFormat, tokens: ControlTokens) -> None:
        """Wrap a format.

        Args:
            form: the format.
            tokens: control tokens of the tokenizer that will encode what it renders.
        """
        self._form, self._tokens = form, tokens
        self.answer_mark, self.system, self.instruction = form.answer_mark, form.system, form.instruction

    def policy_prompt(self, state: State) -> list[Message]:
        """Return the messages that ask the policy for an action in a state."""
        return self._sealed(self._form.policy_prompt(self._neutral(state)))

    def response(self, action: str, thought: str | None = None) -> str:
        """Return the response that takes an action; action and thought are the model's own."""
        return self._form.response(self._tokens.action(action), None if thought is None else self._tokens.own(thought))

    def read(self, text: str, listed: Sequence[str] | None = None) -> Response:
        """Take a response apart; a listed action that prompts show broken is taken as it is listed."""
        if listed is None or not any(self._tokens.neutral(action) != action for action in listed):
            return self._form.read(text, listed)
        shown = [self._tokens.neutral(action) for action in listed]
        response = self._form.read(text, shown)
        for forms in (shown, [self._tokens.action(action) for action in listed]):
            if response.action in forms:
                return replace(response, action=listed[forms.index(response.action)])
        return response

    def world_model_prompt(self, state: State, action: str) -> list[Message]:
        """Return the messages that ask for the outcome of an action in a state."""
        return self._sealed(self._form.world_model_prompt(self._neutral(state), self._tokens.action(action)))

    def outcome(self, observation: str) -> str:
        """Return the answer to these messages."""
        return self._form.outcome(self._tokens.neutral(observation))

    def _sealed(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages without reserved tokens, also where a template has made one out of two texts."""
        return [{"role": message["role"], "content": self._tokens.own(message["content"])} for message in messages]

    def _neutral(self, state: State) -> State:
        neutral, own, action = self._tokens.neutral, self._tokens.own, self._tokens.action
        history = tuple(
            replace(
                turn,
                observation=neutral(turn.observation),
                action=action(turn.action),
                thought=own(turn.thought),
                admissible_actions=self._neutral_list(turn.admissible_actions),
            )
            for turn in state.history
        )
        return replace(
            state,
            task=neutral(state.task),
            history=history,
            observation=neutral(state.observation),
            admissible_actions=self._neutral_list(state.admissible_actions),
        )

    def _neutral_list(self, actions: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if actions is None else tuple(map(self._tokens.neutral, actions))
