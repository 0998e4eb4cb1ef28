"""Prompts of the tests: one of few words, and one that says how to answer."""

from __future__ import annotations

from verl_ee.config import PromptConfig
from verl_ee.prompts.text import TextFormat

BARE = PromptConfig(system="You act in a text world. Answer with one action.", instruction="")
"""Nothing says how to answer."""
TOLD = PromptConfig()
"""The defaults."""

BARE_FORM, TOLD_FORM = TextFormat(BARE), TextFormat(TOLD)
"""The format `text` with these."""
