"""The canonical form: one for all ways to write an action, and different for different actions."""

from __future__ import annotations

from itertools import product

import pytest

from verl_ee.prompts.actions import canonical


@pytest.mark.parametrize(
    "written",
    [
        "go to shelf 1",
        "  go  to\tshelf\n1 ",
        '"go to shelf 1"',
        "'go to shelf 1'",
        "`go to shelf 1`",
        "go to shelf 1.",
        "go to shelf 1...",
        '"go to shelf 1."',
        '"go to shelf 1".',
        "'\"go to shelf 1\"'",
        '" go to shelf 1 . "',
    ],
)
def test_equal_actions_have_one_canonical_form(written: str) -> None:
    assert canonical(written) == "go to shelf 1"


@pytest.mark.parametrize("other", ["go to shelf 2", "Go to shelf 1", "goto shelf 1", "go to shelf 1 now", ""])
def test_different_actions_stay_different(other: str) -> None:
    assert canonical(other) != canonical("go to shelf 1")


def test_canonical_is_stable() -> None:
    for letters in product("\"'`. a", repeat=5):
        once = canonical("".join(letters))
        assert canonical(once) == once
