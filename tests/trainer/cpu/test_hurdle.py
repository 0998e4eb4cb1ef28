"""The list of hurdles on a CPU."""

from __future__ import annotations

from verl_ee.trainer.cpu import HURDLES


def test_every_hurdle_says_why_and_until_when() -> None:
    for hurdle in HURDLES:
        assert hurdle.reason
        assert hurdle.until
        assert hurdle.clear.__doc__
