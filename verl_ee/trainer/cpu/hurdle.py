"""The description of a function that clears one hurdle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hurdle:
    """One thing that keeps stock verl from running on a CPU.

    Attributes:
        clear: makes the change; called once per process.
        reason: what fails without it.
        until: when the function can be deleted.
        replaces: attributes of verl or torch that it replaces, as `module:name`; empty where a registry is enough.
    """

    clear: Callable[[], None]
    reason: str
    until: str
    replaces: tuple[str, ...] = ()
