"""Prompts: the text form of states, actions and outcomes, and the way back from a response to an action."""

from __future__ import annotations

from verl_ee.prompts.control_tokens import break_control_tokens, break_in_messages
from verl_ee.prompts.response import Response, listed_action, read_response
from verl_ee.prompts.state import EpisodeHistory, State, Turn, recent
from verl_ee.prompts.text import (
    Message,
    render_outcome,
    render_policy,
    render_response,
    render_world_model,
    state_text,
)

__all__ = [
    "EpisodeHistory",
    "Message",
    "Response",
    "State",
    "Turn",
    "break_control_tokens",
    "break_in_messages",
    "listed_action",
    "read_response",
    "recent",
    "render_outcome",
    "render_policy",
    "render_response",
    "render_world_model",
    "state_text",
]
