"""Declarations of an environment's class: its version, which two actions are the same, the prompts that suit it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache

from verl_ee.envs.contract import creator_of
from verl_ee.errors import EnvError

CanonicalForm = Callable[[str], str]
"""A function that maps all ways to write one action to one text."""


def version_of(env_id: str) -> str:
    """Return the version of an environment: its own attribute `version`, else that of the package it comes from.

    Raises:
        EnvError: if the id is unknown, or what it needs is not installed.
    """
    creator = creator_of(env_id)
    version = getattr(creator, "version", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version(creator.__module__.split(".")[0])
    except (importlib.metadata.PackageNotFoundError, AttributeError):
        return "unknown"


@cache
def canonical_form(env_id: str) -> CanonicalForm:
    """Return the function that gives the canonical form of an environment's actions, in which two are compared.

    It is the static method `canonical_action` of the environment's class. Without one, two actions are the same if they
    are equal but for outer white space; so are two for which the method raises. A canonical form is never executed,
    learned or shown.

    Raises:
        EnvError: if the id is unknown, or what it needs is not installed. The function raises it for a form that is no
            text.
    """
    form = getattr(creator_of(env_id), "canonical_action", None)
    if form is None:
        return str.strip

    def canonical(action: str) -> str:
        try:
            result = form(action)
        except Exception:  # somebody else's code, and a policy writes anything
            return action.strip()
        if not isinstance(result, str):
            raise EnvError(
                f"{env_id}: canonical_action({action!r}) is {type(result).__name__}, expected str. Return text."
            )
        return result

    return canonical


def suggested_format(env_id: str) -> str | None:
    """Return the prompt format that an environment suggests, or None if it suggests none.

    It is the attribute `prompt_format` of the environment's class. A job uses what `early_experience.prompt.format`
    says, and is told if that is another one.

    Raises:
        EnvError: if the id is unknown, or what it needs is not installed.
    """
    suggested = getattr(creator_of(env_id), "prompt_format", None)
    return None if suggested is None else str(suggested)
