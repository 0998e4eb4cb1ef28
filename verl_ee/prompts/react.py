"""Format `react`: a growing chat of observation, thought and action, as agents of AgentGym have it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from verl_ee.prompts.builtin import BuiltinFormat
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import Response, read_response, render_response, without_reasoning
from verl_ee.prompts.state import State
from verl_ee.prompts.state_text import listing

THOUGHT_PREFIX = "Thought:"
_THOUGHT = re.compile(r"\A\s*(?P<mark>[*_]{0,2})Thought:(?P=mark)[^\S\n]*")


class ReactFormat(BuiltinFormat):
    """One user message per observation, one of the assistant per thought and action; nothing is said twice."""

    default_system = "You act in a text world, one action per turn."
    default_instruction = (
        "Answer every observation in this form, and write no more than that:\n"
        "Thought: <what you think>\nAction: <your next action>"
    )
    default_thoughts = True

    def policy_prompt(self, state: State) -> list[Message]:
        """Return the messages that ask the policy for an action in a state."""
        shown = self._shown(state)
        messages: list[Message] = []
        for index, turn in enumerate(shown.history):
            seen = replace(
                shown,
                history=shown.history[:index],
                observation=turn.observation,
                admissible_actions=turn.admissible_actions,
                steps=shown.steps - len(shown.history) + index,
            )
            messages += [
                self._observation(seen),
                {"role": "assistant", "content": self.response(turn.action, turn.thought)},
            ]
        return self._conversation([*messages, self._observation(shown)])

    def response(self, action: str, thought: str | None = None) -> str:
        """Return the response that takes an action, after a thought if there is one."""
        thought = thought.strip() if thought else ""
        return render_response(action, f"{THOUGHT_PREFIX} {thought}" if thought else None)

    def read(self, text: str, listed: Sequence[str] | None = None) -> Response:
        """Take a response apart (see `verl_ee.prompts.response`); `Thought:` may stand before the thought."""
        # Reasoning in thinking tokens is no part of the chat: models of that kind do not see it again.
        response = read_response(without_reasoning(text)[1], listed)
        return replace(response, thought=_THOUGHT.sub("", response.thought).strip())

    def _observation(self, seen: State) -> Message:
        """Return the user's message of one turn; the first one tells task and form too."""
        if self._template is not None:
            return {"role": "user", "content": self._template.render(seen, self.instruction)}
        content = listing(seen.observation, seen.admissible_actions)
        if not seen.history:
            task = f"Task: {seen.task}" if seen.task else ""
            content = "\n\n".join(filter(None, (task, self.instruction, content)))
        return {"role": "user", "content": content}
