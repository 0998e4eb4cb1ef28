"""Targets of the world model: builders that turn the outcome of an action into the text to predict.

The paper uses a different form in each environment (appendix B): raw observations in ALFWorld, ScienceWorld and
Tau-Bench, summaries in WebShop, SearchQA and WebArena, templated text in TravelPlanner.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from string import Template

from verl_ee.config import WorldModelConfig
from verl_ee.errors import ConfigError, did_you_mean
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.prompts.state import State

TargetBuilder = Callable[[State, ExecutedBranch], str]
FIELDS = ("task", "observation", "action", "outcome", "verdict", "end")
NO_CHANGE = "Nothing changes."
MAX_PARTNERS = 100_000
"""Pairs of equal lines of two observations, up to which a difference tries each."""


def target_builder(config: WorldModelConfig, summaries: Mapping[str, str] | None = None) -> TargetBuilder:
    """Return the builder that a config asks for.

    Args:
        config: names the target, and the template of one.
        summaries: by transition, for `target=summary`.

    Raises:
        ConfigError: if a template has a field that does not exist.
    """
    if config.target == "template":
        return template_target(config.template or "")
    if config.target == "summary":
        return summary_target(summaries or {})
    return difference_target if config.target == "difference" else raw_target


def raw_target(state: State, branch: ExecutedBranch) -> str:
    """Return the observation as it came."""
    return branch.outcome.observation


def difference_target(state: State, branch: ExecutedBranch) -> str:
    """Return the lines of the observation that the state's own observation does not have, and those that are gone.

    A line that is new begins with `+ `, one that is gone with `- `; an observation that is the same is `NO_CHANGE`.
    Lines are compared as wholes, and where some have been replaced those that are gone come first.
    """
    before, after = state.observation.splitlines(), branch.outcome.observation.splitlines()
    changes: list[str] = []
    for _, gone_from, gone_to, new_from, new_to in _line_matcher(before, after).get_opcodes():
        if before[gone_from:gone_to] != after[new_from:new_to]:
            changes += (f"- {line}" for line in before[gone_from:gone_to])
            changes += (f"+ {line}" for line in after[new_from:new_to])
    return "\n".join(changes) or NO_CHANGE


def _line_matcher(before: list[str], after: list[str]) -> difflib.SequenceMatcher[str]:
    """Return the matcher of two texts, line by line.

    A line that comes often, as an empty one, has many partners, and all of them would be tried again and again. Past a
    limit only rarer lines find each other, and the frequent ones beside them follow.
    """
    counts = Counter(after)
    partners = sum(counts[line] for line in before)
    return difflib.SequenceMatcher(None, before, after, autojunk=partners > MAX_PARTNERS)


def summary_target(summaries: Mapping[str, str]) -> TargetBuilder:
    """Return a builder that takes the summary of a transition.

    Args:
        summaries: by transition (see `verl_ee.objectives.summaries`).
    """

    def build(state: State, branch: ExecutedBranch) -> str:
        return summaries[branch.transition]

    return build


def template_target(text: str) -> TargetBuilder:
    """Return a builder that fills a template.

    Args:
        text: with `$task`, `$observation` (before the action), `$action`, `$outcome` (the observation after it),
            `$verdict` (`done` or `refused`; nothing where the environment does not say) and `$end` (`The episode ends.`
            or nothing).

    Raises:
        ConfigError: for a field that does not exist.
    """
    template = Template(text)
    unknown = next((name for name in template.get_identifiers() if name not in FIELDS), None)
    if not template.is_valid() or unknown is not None:
        hint = did_you_mean(unknown, FIELDS) if unknown else f"Fields: {', '.join(f'${name}' for name in FIELDS)}."
        raise ConfigError(f"World-model template {text!r} has an unknown field. {hint} A plain dollar is $$.")

    def build(state: State, branch: ExecutedBranch) -> str:
        return template.substitute(
            task=state.task,
            observation=state.observation,
            action=branch.outcome.action,
            outcome=branch.outcome.observation,
            verdict=_verdict(branch.outcome.valid),
            end="The episode ends." if branch.outcome.done else "",
        ).strip()

    return build


def _verdict(valid: bool | None) -> str:
    if valid is None:
        # A guess would be learned as a fact of the world.
        return ""
    return "done" if valid else "refused"
