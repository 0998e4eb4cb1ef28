"""Format `tagged`: one user message; `<think>` and `<action>` in the response, as agents of verl-agent have it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verl_ee.prompts.builtin import BuiltinFormat
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import (
    THINK_CLOSE,
    THINK_OPEN,
    Response,
    after_reasoning,
    named_action,
    read_unmarked,
    trimmed,
    without_reasoning,
)
from verl_ee.prompts.state import State, Turn

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)


class TaggedFormat(BuiltinFormat):
    """Thought and action in tags of their own. A model with thinking tokens thinks in its own tokens so."""

    answer_mark = "<action>"
    default_system = ""
    default_instruction = (
        "Think first about what to do next, between <think> and </think>. Then write your next action between <action> "
        "and </action>."
    )

    def policy_prompt(self, state: State) -> list[Message]:
        """Return the messages that ask the policy for an action in a state."""
        shown = self._shown(state)
        content = self._blocks(shown) if self._template is None else self._template.render(shown, self.instruction)
        return self._conversation([{"role": "user", "content": content}])

    def response(self, action: str, thought: str | None = None) -> str:
        """Return the response that takes an action, after a thought if there is one."""
        # The indentation of a first line survives on a line of its own.
        inner = f"\n{action}\n" if action[:1].isspace() or "\n" in action else action
        answer = f"<action>{inner}</action>"
        return f"{THINK_OPEN}{thought.strip()}{THINK_CLOSE}\n{answer}" if thought and thought.strip() else answer

    def read(self, text: str, listed: Sequence[str] | None = None) -> Response:
        """Take a response apart: the last `<action>` holds the action, in front of it lies the thought.

        Without one, a line that names a listed action is that action, as in every format.
        """
        reasoning, answer = without_reasoning(text)
        spans = list(_ACTION.finditer(answer))
        if not spans:
            return after_reasoning(reasoning, read_unmarked(answer, listed or ()))
        written = Response(named_action(trimmed(spans[-1][1]), listed) or None, answer[: spans[-1].start()].strip())
        return after_reasoning(reasoning, written)

    def _blocks(self, state: State) -> str:
        blocks = [f"Your task is to: {state.task}"] if state.task else []
        if state.history:
            first = state.steps - len(state.history) + 1
            past = [_past(number, turn) for number, turn in enumerate(state.history, start=first)]
            blocks.append("\n".join([f"You have taken {state.steps} steps. The latest {len(past)} of them:", *past]))
        blocks.append(f"You are at step {state.steps + 1}, and see: {state.observation}")
        if state.admissible_actions is not None:
            listed = ", ".join(f"'{action}'" for action in state.admissible_actions)
            blocks.append(f"Your admissible actions are: [{listed}].")
        return "\n\n".join(filter(None, ("\n".join(blocks), self.instruction)))


def _past(number: int, turn: Turn) -> str:
    """Return the line of a past turn."""
    thought = f"Thought {number}: '{turn.thought}', " if turn.thought else ""
    return f"[Observation {number}: '{turn.observation}', {thought}Action {number}: '{turn.action}']"
