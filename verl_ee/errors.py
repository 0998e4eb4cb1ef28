"""Every error that verl_ee raises on purpose, one type per boundary that was crossed.

A message says what is wrong, where (file and line, key, state), what was expected and what to do. Whoever catches
`EarlyExperienceError` may print the message alone: no traceback is needed to act on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EarlyExperienceError(Exception):
    """Base of all errors raised by verl_ee."""


ErrorType = type[EarlyExperienceError]
"""The type of error that a shared function raises for its caller."""


class ConfigError(EarlyExperienceError):
    """A key or a combination of keys cannot be served."""


class EnvError(EarlyExperienceError):
    """An environment is unknown, misbehaves, or lacks a capability that was asked for."""


class ExpertFileError(EarlyExperienceError):
    """An expert file is missing, cut off, of another schema, or does not describe its environment."""


class StoreError(EarlyExperienceError):
    """Collected data cannot be read back."""


class WriteError(EarlyExperienceError):
    """There is no room for a file."""


class BranchError(EarlyExperienceError):
    """A state could not be reached again, or too many could not."""


class ExampleError(EarlyExperienceError):
    """Training examples are empty, too long, or cannot be encoded."""


class ExampleFileError(EarlyExperienceError):
    """A file of examples is missing, cut off, of another schema, or holds what cannot be learned."""


class StageError(EarlyExperienceError):
    """A stage of the run failed after the job had started."""


class UpstreamError(EarlyExperienceError):
    """The installed verl, vllm, ray or torch is not what verl_ee relies on."""


def own_error(error: object) -> EarlyExperienceError | None:
    """Return the error of ours that `error` is, wraps or was caused by.

    An error of a Ray actor arrives as a RayTaskError that keeps the original under `cause`. It is an instance of the
    original's class as well, but its text is the traceback in the actor.
    """
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        original = getattr(error, "cause", None)
        if isinstance(error, EarlyExperienceError) and not isinstance(original, EarlyExperienceError):
            return error
        error = original or getattr(error, "__cause__", None)
    return None


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """Return a hint with the closest allowed value, or with all of them.

    Args:
        value: what the user wrote.
        allowed: what is accepted.

    Returns:
        A sentence to append to a message.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}? Allowed: {', '.join(names)}."
    return f"Allowed: {', '.join(names) or '(none)'}."


def not_yaml(what: str, error: Exception) -> ConfigError:
    """Return the error of a `KEY=VALUE` whose value YAML cannot read.

    Args:
        what: the argument, as the user wrote it.
        error: error of the YAML parser.
    """
    return ConfigError(f"{what}: the value is not YAML ({' '.join(str(error).split())}). Quote it.")
