"""Proposers: where the alternatives of a state come from."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from verl_ee.config import CollectConfig
from verl_ee.envs import CanonicalForm, ExpertTrajectory, canonical_form
from verl_ee.experience.state_ref import StateRef
from verl_ee.prompts.state import State

EXPERT = "expert"
POLICY = "policy"
"""Proposer of an alternative that the policy wrote itself."""
LISTED = ("admissible", "exhaustive")
"""Alternatives that follow from the environment's list alone."""
NO_ACTION, EXPERT_ACTION, EXPERT_TOOL, REPEATED, UNLISTED = REASONS = (
    "no action",
    "the expert's own action",
    "the expert's tool",
    "an action drawn before",
    "not a listed action",
)
"""Why a response gives no alternative."""


@dataclass(frozen=True)
class ProposalRequest:
    """A state whose alternatives are wanted.

    Attributes:
        ref: position of the state in the expert file.
        task: id of the task.
        state: what the agent sees there.
        expert_action: the expert's action, which is no alternative.
        canonical: function that gives the canonical form of an action.
    """

    ref: StateRef
    task: str
    state: State
    expert_action: str
    canonical: CanonicalForm = str.strip


@dataclass(frozen=True)
class Proposal:
    """An alternative and its origin.

    Attributes:
        action: the action, as it will be executed.
        proposer: name of the proposer.
        policy: version of the policy that it was sampled from, empty where none was.
        sampling: how it was sampled, as JSON, empty where nothing was.
    """

    action: str
    proposer: str
    policy: str = ""
    sampling: str = ""


@dataclass(frozen=True)
class UnusedResponse:
    """A response that gave no alternative.

    Attributes:
        text: the response in full.
        reason: why it gave none, one of `REASONS`.
    """

    text: str
    reason: str


@dataclass(frozen=True)
class ProposalBatch:
    """The alternatives of several states.

    Attributes:
        alternatives: one tuple per request, in the order of the requests.
        prompt_tokens: tokens that a language model read for them.
        completion_tokens: tokens that it wrote.
        responses: number of responses that were sampled for each request; none where nothing was sampled.
        unused: the responses of each request that gave no alternative.
    """

    alternatives: tuple[tuple[Proposal, ...], ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    responses: tuple[int, ...] = ()
    unused: tuple[tuple[UnusedResponse, ...], ...] = ()


class Proposer(Protocol):
    """Proposes alternatives for many states at once, from the states alone.

    It is called in threads of its own, several times at a time, while environment workers execute what it proposed
    before.

    Attributes:
        window: states that it works on at a time, over all calls.
    """

    window: int

    def propose(self, requests: Sequence[ProposalRequest], /) -> ProposalBatch:
        """Return the alternatives of each request; none may equal its expert's action in canonical form."""


def listed_proposals(
    config: CollectConfig, trajectory: ExpertTrajectory, step: int, listed: Sequence[str]
) -> tuple[Proposal, ...]:
    """Return the alternatives of a state that follow from its list of actions.

    Args:
        config: `admissible` takes K of them, `exhaustive` all unless K is 0, in a random order either way.
        trajectory: the expert trajectory.
        step: step of the state.
        listed: actions that the environment lists there, in its order.
    """
    k = len(listed) if config.alternatives == "exhaustive" and config.k else config.k
    expert_action = trajectory.steps[step].action
    allowed = allowed_alternatives(listed, expert_action, config)
    canonical = canonical_form(trajectory.environment)
    actions = sample_admissible(allowed, expert_action, k, seed_of(config, trajectory.task, step), canonical)
    return tuple(Proposal(action, config.alternatives) for action in actions)


def seed_of(config: CollectConfig, task: str, step: int) -> str:
    """Return the seed of the choice of a state's alternatives, the same in every process."""
    return f"{config.seed}:{task}:{step}"


def sample_admissible(
    listed: Sequence[str], expert_action: str, k: int, seed: str, canonical: CanonicalForm = str.strip
) -> list[str]:
    """Return up to K of the listed actions, uniform without replacement, the expert's left out (paper, section B.1)."""
    pool = other_actions(listed, expert_action, canonical)
    # All are drawn, so that fewer alternatives are the first of more.
    return random.Random(seed).sample(pool, len(pool))[:k]


def other_actions(listed: Iterable[str], expert_action: str, canonical: CanonicalForm) -> list[str]:
    """Return the listed actions that differ from each other and from the expert's in canonical form, in their order."""
    taken, others = {canonical(expert_action)}, list[str]()
    for action in listed:
        form = canonical(action)
        if form not in taken:
            taken.add(form)
            others.append(action)
    return others


def visible_state(request: ProposalRequest, config: CollectConfig) -> State:
    """Return the state as a policy sees it: without the actions that `withhold_expert_tool` keeps from it."""
    listed = request.state.admissible_actions
    if listed is None:
        return request.state
    allowed = allowed_alternatives(listed, request.expert_action, config)
    return replace(request.state, admissible_actions=tuple(allowed))


def allowed_alternatives(actions: Sequence[str], expert_action: str, config: CollectConfig) -> Sequence[str]:
    """Return the actions that may be alternatives: all, or those with another tool than the expert's."""
    if not config.withhold_expert_tool:
        return actions
    return [action for action in actions if tool_of(action) != tool_of(expert_action)]


def tool_of(action: str) -> str:
    """Return the `name` of a JSON tool call, else the first word of the action.

    A call may stand between `<tool_call>` and `</tool_call>`; a word ends before a bracket, so that the tool of
    `search[red mug]` is `search`.
    """
    text = action.strip()
    try:
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return str(call["name"])
    word = re.search(r"[\w.-]+", text)
    return word.group(0) if word else ""
