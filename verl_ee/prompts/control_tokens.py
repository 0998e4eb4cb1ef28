"""Control tokens in the text of an environment, which is data: they are broken before the text is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def break_control_tokens(text: str, control_tokens: Iterable[str]) -> str:
    """Return `text` with every control token broken after its first character, by a space.

    Text of an environment is data: encoded as it stands, a `<|im_end|>` in it would end the message. Where a token has
    a space of its own, as ` <end>`, another character breaks all of them: a second space would leave it whole.

    Args:
        text: any.
        control_tokens: the tokens. White space controls nothing, and a token of one character cannot be broken.
    """
    tokens = [token for token in control_tokens if len(token) > 1 and not token.isspace()]
    # A character that no token has breaks one for good, and makes no other.
    gap = next(character for character in _gaps() if not any(character in token for token in tokens))
    for token in tokens:
        while token in text:
            text = text.replace(token, f"{token[0]}{gap}{token[1:]}")
    return text


def _gaps() -> Iterator[str]:
    """Yield the characters that may break a token: white space, and where tokens have all of it, private ones."""
    yield from " \t\n\u00a0\u2002\u2003\u2009"
    yield from map(chr, range(0xE000, 0xF900))
