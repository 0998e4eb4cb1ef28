"""The way back from a response to an action, the same for agent loop, proposer and evaluation.

An action is taken as it was written. Where the environment lists actions, one that is named loosely (another case,
quotes, a full stop, the number of a list, markdown, no prefix) is taken as it is listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKER = re.compile(r"^[^\S\n]*(?:Action:|(?P<mark>\*\*|__|\*|_)Action(?::(?P=mark)|(?P=mark):))", re.MULTILINE)
"""`Action:` at the start of a line, also in markdown's bold or italics."""
_LIST_MARK = re.compile(r"^(?:\(?\d+[.):]|[-*+>#\u2022]+)\s+")
_WRAPPING = "\"'`*_\u201c\u201d\u2018\u2019"


@dataclass(frozen=True)
class Response:
    """A response of the policy, taken apart.

    Attributes:
        action: the action, or None where the response holds none.
        thought: the text before the action, empty if there is none.
    """

    action: str | None
    thought: str = ""


def read_response(text: str, listed: Sequence[str] | None = None) -> Response:
    """Take a response apart. Never raises: a response without an action has `action=None`.

    The last line that begins with `Action:` holds the action, which goes on to the end of the response: it may have
    several lines. Without such a line, a line that names a listed action is that action; lines that name different
    ones are none.

    Args:
        text: the response.
        listed: actions that the environment lists; None where it lists none.
    """
    markers = list(_MARKER.finditer(text))
    if not markers:
        return _unmarked(text, listed or ())
    written = _trimmed(text[markers[-1].end() :])
    first_line = written.partition("\n")[0]
    action = written
    if listed and written not in listed:
        action = listed_action(written, listed) or listed_action(first_line, listed) or written
    return Response(action or None, text[: markers[-1].start()].strip())


def listed_action(text: str, listed: Sequence[str]) -> str | None:
    """Return the listed action that a text names, exactly or else loosely; None if it names none or several."""
    if text in listed:
        return text
    form = _loose(text)
    named = {action for action in listed if _loose(action) == form} if form else set()
    return named.pop() if len(named) == 1 else None


def _unmarked(text: str, listed: Sequence[str]) -> Response:
    lines = text.split("\n")
    named = {index: action for index, line in enumerate(lines) if (action := listed_action(line.strip(), listed))}
    if len(set(named.values())) != 1:
        return Response(None, text.strip())
    index = max(named)
    return Response(named[index], "\n".join(lines[:index]).strip())


def _trimmed(text: str) -> str:
    """Return a text without outer white space; a first line that follows on an empty one keeps its indentation."""
    first, newline, rest = text.partition("\n")
    if first.strip() or not newline:
        return text.strip()
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", rest).rstrip()


def _loose(text: str) -> str:
    """Return the form in which a text and a listed action are compared."""
    form, before = " ".join(text.casefold().split()), None
    while form != before:
        before = form
        form = _LIST_MARK.sub("", form).strip(_WRAPPING).strip().rstrip(".").strip()
    return form
