"""Rationales by rule: for models too small to write, and for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from verl_ee.errors import ExampleError
from verl_ee.experience.outcome import Outcome
from verl_ee.objectives.reflection.gate_patterns import content, plain
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.prompts.state import State

SHOWN = 2
"""Other actions that the template speaks of: a short rationale leaves more weight to the action."""


class TemplateWriter:
    """A rule that writes rationales.

    It compares the outcome of every executed action with the past of the agent and with the words of the task. It
    speaks of outcomes only as expected.
    """

    kind = "template"
    stop: ExampleError | None = None

    def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
        """Yield each situation with a few plain sentences."""
        for situation in situations:
            yield situation, _rationale(situation)


def _rationale(situation: Situation) -> str:
    state = situation.state
    sentences = [f"I see {_in_order_of(state.task, _visible_task_words(state)) or 'nothing'} of the task."]
    action_by_drawback: dict[str, str] = {}
    for branch in situation.alternatives:
        action_by_drawback.setdefault(_drawback(situation, branch.outcome), branch.outcome.action)
    for drawback, action in list(action_by_drawback.items())[:SHOWN]:
        sentences.append(f"'{action}' {drawback}.")
    return " ".join([*sentences, f"'{situation.expert_action}' {_prospect(situation)}."])


def _drawback(situation: Situation, outcome: Outcome) -> str:
    """Return why an action other than the expert's is not taken, as far as its outcome shows it."""
    state = situation.state
    if outcome.refused:
        return "would be refused"
    if outcome.done and not situation.expert_branch.outcome.done:
        return "would end it too early"
    if outcome.observation in _past_observations(state):
        return "would show nothing new"
    if content(state.task) & content(outcome.observation) <= content(state.observation):
        return "would add nothing to it"
    return "can wait"


def _prospect(situation: Situation) -> str:
    """Return what is expected of the expert's action, as far as its outcome bears it out."""
    state, outcome = situation.state, situation.expert_branch.outcome
    if outcome.done:
        return "should end the task"
    task_words = content(state.task)
    gained_words = (task_words & content(outcome.observation)) - _visible_task_words(state)
    if gained_words:
        return f"may bring me to {_in_order_of(state.task, gained_words)}"
    action_words = task_words & content(situation.expert_action)
    if action_words:
        return f"should help with {_in_order_of(state.task, action_words)}"
    return "should bring me on" if outcome.observation in _past_observations(state) else "may show me more"


def _visible_task_words(state: State) -> set[str]:
    """Return the words of the task that the latest observation has."""
    return content(state.task) & content(state.observation)


def _past_observations(state: State) -> set[str]:
    return {state.observation, *(turn.observation for turn in state.history)}


def _in_order_of(task: str, words: set[str]) -> str:
    """Return `words` in the order in which the task has them."""
    return ", ".join(word for word in dict.fromkeys(plain(task).split()) if word in words)
