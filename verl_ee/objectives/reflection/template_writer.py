"""Rationales by rule: for models too small to write, and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from verl_ee.errors import ExampleError
from verl_ee.experience.store import ExecutedBranch
from verl_ee.objectives.reflection.gate_patterns import content, plain
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.prompts.state import State

SHOWN = 2
"""Other actions that the template speaks of: a short rationale leaves more weight to the action."""


class TemplateWriter:
    """Writes by rule: for models too small to write, and for tests.

    It compares what every executed action led to with what the agent has seen, and with what the task names; it tells
    of outcomes only as expected.
    """

    name = "template"
    stop: ExampleError | None = None

    def write(self, situations: Sequence[Situation]) -> Sequence[str]:
        """Return a few plain sentences per situation."""
        return [_by_rule(situation) for situation in situations]


def _by_rule(situation: Situation) -> str:
    state, named = situation.state, content(situation.state.task)
    here = named & content(state.observation)
    sentences = [f"I see {_list(state.task, here) or 'nothing'} of the task."]
    drawbacks: dict[str, str] = {}
    for outcome in situation.alternatives:
        drawbacks.setdefault(_drawback(situation, outcome), outcome.action)
    sentences += [f"'{action}' {drawback}." for drawback, action in list(drawbacks.items())[:SHOWN]]
    return " ".join([*sentences, _prospect(situation, here, named)])


def _drawback(situation: Situation, outcome: ExecutedBranch) -> str:
    """Return why an action other than the expert's is not taken, as far as its outcome shows it."""
    state = situation.state
    if not outcome.valid:
        return "would be refused"
    if outcome.done and not situation.outcome.done:
        return "would end it too early"
    if outcome.observation in _seen(state):
        return "would show nothing new"
    if content(state.task) & content(outcome.observation) <= content(state.observation):
        return "would add nothing to it"
    return "can wait"


def _prospect(situation: Situation, here: set[str], named: set[str]) -> str:
    """Return what is expected of the expert's action, as far as its outcome bears it out."""
    state, action, outcome = situation.state, f"'{situation.action}'", situation.outcome
    if outcome.done:
        return f"{action} should end the task."
    gained = (named & content(outcome.observation)) - here
    if gained:
        return f"{action} may bring me to {_list(state.task, gained)}."
    if named & content(situation.action):
        return f"{action} should help with {_list(state.task, named & content(situation.action))}."
    return f"{action} {'should bring me on' if outcome.observation in _seen(state) else 'may show me more'}."


def _seen(state: State) -> set[str]:
    return {state.observation, *(turn.observation for turn in state.history)}


def _list(task: str, words: set[str]) -> str:
    """Return `words` in the order in which the task has them."""
    return ", ".join(word for word in dict.fromkeys(plain(task).split()) if word in words)
