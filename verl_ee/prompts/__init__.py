"""Prompts: the forms of states, actions and outcomes, and the way back from a response to an action."""

from __future__ import annotations

from verl_ee.prompts.format import Message, PromptFormat
from verl_ee.prompts.formats import prompt_format
from verl_ee.prompts.neutral import ControlTokens, NeutralFormat
from verl_ee.prompts.react import ReactFormat
from verl_ee.prompts.response import Response, listed_action, read_response
from verl_ee.prompts.state import EpisodeHistory, State, Turn, recent
from verl_ee.prompts.state_text import state_text
from verl_ee.prompts.tagged import TaggedFormat
from verl_ee.prompts.text import TextFormat

__all__ = [
    "ControlTokens",
    "EpisodeHistory",
    "Message",
    "NeutralFormat",
    "PromptFormat",
    "ReactFormat",
    "Response",
    "State",
    "TaggedFormat",
    "TextFormat",
    "Turn",
    "listed_action",
    "prompt_format",
    "read_response",
    "recent",
    "state_text",
]
