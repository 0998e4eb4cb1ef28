"""Control tokens in the text of an environment, which is data: they are broken before the text is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verl_ee.prompts.text import Message


def break_control_tokens(text: str, control_tokens: Iterable[str]) -> str:
    """Return `text` with every control token broken by a space after its first character.

    Text of an environment is data: encoded as it stands, a `<|im_end|>` in it would end the message.
    """
    for token in control_tokens:
        # White space controls nothing, and breaking it by more white space would never end.
        while len(token) > 1 and not token.isspace() and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def break_in_messages(messages: Iterable[Message], control_tokens: Sequence[str]) -> list[Message]:
    """Return `messages` with every control token in their contents broken (see `break_control_tokens`)."""
    return [
        {"role": message["role"], "content": break_control_tokens(message["content"], control_tokens)}
        for message in messages
    ]
