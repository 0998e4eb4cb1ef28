"""Where alternatives come from."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.prompts.actions import canonical
from verl_ee.prompts.state import State

EXPERT = "expert"
LISTED = ("admissible", "exhaustive")
"""Alternatives that follow from the environment's list alone."""


@dataclass(frozen=True)
class ProposalRequest:
    """A state whose alternatives are wanted.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
        task: id of the task.
        state: what the agent sees there.
        expert: the expert's action, which is no alternative.
    """

    trajectory: int
    step: int
    task: str
    state: State
    expert: str


@dataclass(frozen=True)
class Proposal:
    """An alternative and where it comes from.

    Attributes:
        action: what is executed.
        proposer: which one.
        policy: version of the policy that it was sampled from, empty where none was.
        sampling: how, as JSON, empty where nothing was sampled.
    """

    action: str
    proposer: str
    policy: str = ""
    sampling: str = ""


@dataclass(frozen=True)
class ProposalBatch:
    """What a batch of questions gave.

    Attributes:
        alternatives: per question, in its order.
        prompt_tokens: read by a language model.
        completion_tokens: written by it.
    """

    alternatives: tuple[tuple[Proposal, ...], ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Proposer(Protocol):
    """Proposes alternatives for many states at once, from the states alone.

    It is called in a thread of its own, while environment workers execute what it proposed before.
    """

    def propose(self, questions: Sequence[ProposalRequest]) -> ProposalBatch:
        """Return the alternatives of each question; none may equal its expert's action in canonical form."""


def listed_proposals(
    config: CollectConfig, trajectory: ExpertTrajectory, step: int, listed: Sequence[str]
) -> tuple[Proposal, ...]:
    """Return the alternatives of a state that follow from its list of actions.

    Args:
        config: `admissible` takes K of them, `exhaustive` all, in a random order either way.
        trajectory: what the expert did.
        step: whose state it is.
        listed: what the environment lists there, in its order.
    """
    k = config.k if config.alternatives == "admissible" else len(listed)
    expert = trajectory.steps[step].action
    actions = sample_admissible(
        allowed_alternatives(listed, expert, config), expert, k, seed_of(config, trajectory.task, step)
    )
    return tuple(Proposal(action, config.alternatives) for action in actions)


def seed_of(config: CollectConfig, task: str, step: int) -> str:
    """Return what the choice of a state's alternatives is seeded with, so that it is the same whoever makes it."""
    return f"{config.seed}:{task}:{step}"


def sample_admissible(listed: Sequence[str], expert: str, k: int, seed: str) -> list[str]:
    """Return up to K of the listed actions, uniform without replacement, the expert's left out (paper, section B.1)."""
    taken, pool = {canonical(expert)}, list[str]()
    for action in listed:
        if canonical(action) not in taken:
            taken.add(canonical(action))
            pool.append(action)
    # All are drawn, so that fewer alternatives are the first of more.
    return random.Random(seed).sample(pool, len(pool))[:k]


def visible_state(question: ProposalRequest, config: CollectConfig) -> State:
    """Return the state that a policy is asked in: without the actions that `withhold_expert_tool` keeps from it."""
    listed = question.state.admissible_actions
    if listed is None:
        return question.state
    return replace(question.state, admissible_actions=tuple(allowed_alternatives(listed, question.expert, config)))


def allowed_alternatives(actions: Sequence[str], expert: str, config: CollectConfig) -> Sequence[str]:
    """Return the actions that may be alternatives: all, or those with another tool than the expert's."""
    if not config.withhold_expert_tool:
        return actions
    return [action for action in actions if tool_of(action) != tool_of(expert)]


def tool_of(action: str) -> str:
    """Return the `name` of a JSON tool call, else the first word of the canonical action.

    A call may stand between `<tool_call>` and `</tool_call>`; a word ends before a bracket, so that the tool of
    `search[red mug]` is `search`.
    """
    text = canonical(action)
    try:
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return str(call["name"])
    word = re.search(r"[\w.-]+", text)
    return word.group(0) if word else ""


def policy_proposals(
    drawn: Iterable[Proposal], config: CollectConfig, question: ProposalRequest
) -> tuple[Proposal, ...]:
    """Return the alternatives of a state from what a policy sampled there.

    The first K that differ from each other and from the expert's action in canonical form are taken. One that the
    environment does not list is kept or replaced (`unlisted`), and `mixture` adds listed ones. None has the expert's
    tool if that is withheld.

    Args:
        drawn: in the order of the draws.
        config: K and the choices above.
        question: the state.
    """
    drawn = list(drawn)
    allowed = set(allowed_alternatives([item.action for item in drawn], question.expert, config))
    kept = distinct_alternatives([item for item in drawn if item.action in allowed], question.expert, config.k)
    listed = visible_state(question, config).admissible_actions
    if listed is None:
        return kept
    forms = {canonical(action) for action in listed}
    usage = {canonical(proposal.action) for proposal in kept}
    spare = sample_admissible(listed, question.expert, len(listed), seed_of(config, question.task, question.step))
    unused = iter([Proposal(action, "admissible") for action in spare if canonical(action) not in usage])
    if config.unlisted == "replace":
        fitting = [item if canonical(item.action) in forms else next(unused, None) for item in kept]
        kept = tuple(item for item in fitting if item is not None)
    extra = config.extra_admissible if config.alternatives == "mixture" else 0
    return (*kept, *itertools.islice(unused, extra))


def distinct_alternatives(proposals: Iterable[Proposal], expert: str, k: int) -> tuple[Proposal, ...]:
    """Return the first K proposals that differ from each other and from the expert's action in canonical form."""
    taken, kept = {canonical(expert)}, list[Proposal]()
    for proposal in proposals:
        form = canonical(proposal.action)
        if form and form not in taken and len(kept) < k:
            taken.add(form)
            kept.append(proposal)
    return tuple(kept)
