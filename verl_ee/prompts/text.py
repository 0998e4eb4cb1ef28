"""Format `text`: one user message with task, past turns, observation and listed actions; `Action:` in the response."""

from __future__ import annotations

from collections.abc import Sequence

from verl_ee.prompts.builtin import BuiltinFormat
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import Response, read_response, render_response
from verl_ee.prompts.state import State
from verl_ee.prompts.state_text import state_text


class TextFormat(BuiltinFormat):
    """Plain text, which any instruct model can follow."""

    default_instruction = (
        "What do you do next? You may think first. End with one line in this form:\nAction: <your next action>"
    )

    def policy_prompt(self, state: State) -> list[Message]:
        """Return the messages that ask the policy for an action in a state."""
        shown = self._shown(state)
        if self._template is not None:
            content = self._template.render(shown, self.instruction)
        else:
            content = "\n\n".join(filter(None, (state_text(shown, thoughts=True), self.instruction)))
        return self._conversation([{"role": "user", "content": content}])

    def response(self, action: str, thought: str | None = None) -> str:
        """Return the response that takes an action, after a thought if there is one."""
        return render_response(action, thought)

    def read(self, text: str, listed: Sequence[str] | None = None) -> Response:
        """Take a response apart (see `verl_ee.prompts.response`)."""
        return read_response(text, listed)
