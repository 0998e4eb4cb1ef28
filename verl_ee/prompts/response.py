"""A response with `Action:`, and the way back from it to an action.

An action is taken as it was written. Where the environment lists actions, one that is named loosely (another case,
quotes, one full stop, the number of a list, markdown, no prefix) is taken as it is listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ACTION_PREFIX = "Action:"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""Between them a model thinks; no action is there, in any format."""
_MARKER = re.compile(
    r"^[^\S\n]*(?:(?:\(?\d+[.):]|[-*+>#\u2022]+)[^\S\n]+)?(?P<mark>\*\*|__|\*|_|`)?(?:Action|ACTION)"
    r"(?P<closed>(?P=mark))?:(?(mark)(?(closed)|(?P<closed_after>(?P=mark))?))",
    re.MULTILINE,
)
"""`Action:` at the start of a line, also behind the mark of a list, and in markdown's bold, italics or code."""
_LIST_MARK = re.compile(r"^(?:\(?\d+[.):]|[-*+>#\u2022]+)\s+")
_NUMBER_MARK = re.compile(r"^\(?\d+[.):]\s+")
_PREFIX = re.compile(r"^action:\s*")
_WRAPPING = "\"'`*_[]()\u201c\u201d\u2018\u2019"
_FULL_STOP = re.compile(r"(?<=[^.\s])[.!]$")
"""One full stop behind a word: that of `cd ..` belongs to the action."""


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
    several lines. If its first line names a listed action, that is the action. Without such a line, a line that names a
    listed action is that action; lines that name different ones are none.

    Args:
        text: the response.
        listed: actions that the environment lists; None where it lists none.
    """
    reasoning, answer = without_reasoning(text)
    markers = list(_MARKER.finditer(answer))
    if not markers:
        return after_reasoning(reasoning, read_unmarked(answer, listed or ()))
    marker = markers[-1]
    written = trimmed(answer[marker.end() :])
    if marker["mark"] and marker["closed"] is None and marker["closed_after"] is None:
        # The mark was opened before `Action:` and is closed behind the action.
        written = written.removesuffix(marker["mark"]).rstrip()
    return after_reasoning(reasoning, Response(named_action(written, listed) or None, answer[: marker.start()].strip()))


def without_reasoning(text: str) -> tuple[str, str]:
    """Return what a model with thinking tokens thought, and its answer; a prompt may have opened the thought."""
    before, end, answer = text.rpartition(THINK_CLOSE)
    if not end and text.lstrip().startswith(THINK_OPEN):
        # It never came to an answer.
        before, answer = text, ""
    elif not end:
        return "", text
    return before.strip().removeprefix(THINK_OPEN).strip(), answer.lstrip("\n")


def after_reasoning(reasoning: str, response: Response) -> Response:
    """Return a response with what was thought before it."""
    return Response(response.action, "\n".join(filter(None, (reasoning, response.thought))))


def render_response(action: str, thought: str | None = None) -> str:
    """Return the response that takes `action`, after `thought` if there is one."""
    # The indentation of a first line survives on a line of its own.
    line = f"{ACTION_PREFIX}\n{action}" if action[:1].isspace() else f"{ACTION_PREFIX} {action}"
    return f"{thought.strip()}\n{line}" if thought and thought.strip() else line


def named_action(written: str, listed: Sequence[str] | None) -> str:
    """Return the listed action that a written one names, whole or with its first line; else the written one."""
    if not listed or written in listed:
        return written
    first_line = written.partition("\n")[0]
    return listed_action(written, listed, _NUMBER_MARK) or listed_action(first_line, listed, _NUMBER_MARK) or written


def listed_action(text: str, listed: Sequence[str], list_mark: re.Pattern[str] = _LIST_MARK) -> str | None:
    """Return the listed action that a text names, exactly or else loosely; None if it names none or several.

    Args:
        text: one line.
        listed: actions that the environment lists.
        list_mark: what may stand before the action, as the number of a list.
    """
    return text if text in listed else _by_form(listed, list_mark).get(_loose(text, list_mark))


def _by_form(listed: Sequence[str], list_mark: re.Pattern[str]) -> dict[str, str]:
    """Return each listed action by its loose form, without forms that several have and without an empty one."""
    named = dict[str, set[str]]()
    for action in listed:
        named.setdefault(_loose(action, list_mark), set()).add(action)
    return {form: actions.pop() for form, actions in named.items() if form and len(actions) == 1}


def read_unmarked(text: str, listed: Sequence[str]) -> Response:
    """Read a response without a mark: a line that names a listed action is that action, unless others name others."""
    lines = text.split("\n")
    exact, by_form = set(listed), _by_form(listed, _LIST_MARK)
    named = dict[int, str]()
    for index, line in enumerate(map(str.strip, lines)):
        action = line if line in exact else by_form.get(_loose(line, _LIST_MARK))
        if action:
            named[index] = action
    if len(set(named.values())) != 1:
        return Response(None, text.strip())
    index = max(named)
    return Response(named[index], "\n".join(lines[:index]).strip())


def trimmed(text: str) -> str:
    """Return a text without outer white space; a first line that follows on an empty one keeps its indentation."""
    first, newline, rest = text.partition("\n")
    if first.strip() or not newline:
        return text.strip()
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", rest).rstrip()


def _loose(text: str, list_mark: re.Pattern[str]) -> str:
    """Return the form in which a text and a listed action are compared."""
    form, before = " ".join(text.casefold().split()), None
    while form != before:
        before = form
        form = _PREFIX.sub("", list_mark.sub("", form)).strip(_WRAPPING).strip()
    return _FULL_STOP.sub("", form).strip(_WRAPPING).strip()
