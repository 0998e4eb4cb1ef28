"""The canonical form of an action, in which two actions are compared."""

from __future__ import annotations

import re


def canonical(action: str) -> str:
    """Return the form in which two actions are compared: outer quotes, spaces and the full stop removed.

    White space inside becomes single spaces.
    """
    text, before = re.sub(r"\s+", " ", action), None
    while text != before:
        before, text = text, text.strip().strip("\"'`").strip().rstrip(".").strip()
    return text
