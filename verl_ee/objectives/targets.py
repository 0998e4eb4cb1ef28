"""What a world-model example asks for: builders that turn the outcome of an action into the text to predict.

The paper uses a different form in each environment (appendix B): raw observations in ALFWorld, ScienceWorld and
Tau-Bench, summaries in WebShop, SearchQA and WebArena, templated text in TravelPlanner.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from string import Template

from verl_ee.errors import ConfigError, did_you_mean
from verl_ee.experience.store import ExecutedBranch
from verl_ee.prompts.state import State

TargetBuilder = Callable[[State, ExecutedBranch], str]
FIELDS = ("task", "observation", "action", "outcome", "verdict", "end")
NO_CHANGE = "Nothing changes."


def raw_target(state: State, outcome: ExecutedBranch) -> str:
    """Return the observation as it came."""
    return outcome.observation


def difference_target(state: State, outcome: ExecutedBranch) -> str:
    """Return the lines of the observation that the state's own observation does not have, and those that are gone.

    A line that is new begins with `+ `, one that is gone with `- `; an observation that is the same is `NO_CHANGE`.
    """
    before, after = state.observation.splitlines(), outcome.observation.splitlines()
    changes = [line for line in difflib.ndiff(before, after) if line[:2] in ("+ ", "- ")]
    return "\n".join(changes) or NO_CHANGE


def summary_target(texts: Mapping[str, str]) -> TargetBuilder:
    """Return a builder that takes the summary of a transition.

    Args:
        texts: by transition (see `verl_ee.objectives.summaries`).
    """
    return lambda _, outcome: texts[outcome.transition]


def template_target(text: str) -> TargetBuilder:
    """Return a builder that fills a template.

    Args:
        text: with `$task`, `$observation` (before the action), `$action`, `$outcome` (the observation after it),
            `$verdict` (`done` or `refused`) and `$end` (`The episode ends.` or nothing).

    Raises:
        ConfigError: for a field that does not exist.
    """
    filled = Template(text)
    wrong = next((name for name in filled.get_identifiers() if name not in FIELDS), None)
    if not filled.is_valid() or wrong is not None:
        hint = did_you_mean(wrong, FIELDS) if wrong else f"Fields: {', '.join(f'${name}' for name in FIELDS)}."
        raise ConfigError(f"World-model template {text!r} has an unknown field. {hint} A plain dollar is $$.")

    def build(state: State, outcome: ExecutedBranch) -> str:
        return filled.substitute(
            task=state.task,
            observation=state.observation,
            action=outcome.action,
            outcome=outcome.observation,
            verdict="done" if outcome.valid else "refused",
            end="The episode ends." if outcome.done else "",
        ).strip()

    return build
