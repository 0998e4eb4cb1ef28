"""Alternatives from what a policy sampled: its own, and the listed actions that fill up what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_ee.config import CollectConfig
from verl_ee.experience.proposers import (
    EXPERT_ACTION,
    EXPERT_TOOL,
    REPEATED,
    UNLISTED,
    Proposal,
    ProposalRequest,
    allowed_alternatives,
    other_actions,
    sample_admissible,
    seed_of,
    visible_state,
)

DRAWS_PER_ALTERNATIVE = 4
"""Responses per alternative at most, where nothing is listed and no number of draws is given."""


@dataclass(frozen=True)
class PolicyAlternatives:
    """The alternatives of a state, from what a policy sampled there.

    Attributes:
        own: those that the policy wrote, at most K.
        added: listed ones.
        unused: the samples that are none, each with the reason.
    """

    own: tuple[Proposal, ...]
    added: tuple[Proposal, ...]
    unused: tuple[tuple[Proposal, str], ...]

    @property
    def all(self) -> tuple[Proposal, ...]:
        """All alternatives, the policy's own first."""
        return (*self.own, *self.added)


def policy_proposals(drawn: Sequence[Proposal], config: CollectConfig, request: ProposalRequest) -> PolicyAlternatives:
    """Return the alternatives of a state from what a policy sampled there.

    The first K that differ from each other and from the expert's action in canonical form are taken. With
    `unlisted=replace` one that the environment does not list is left out, and listed ones fill up to K. `mixture` adds
    further listed ones. None has the expert's tool if that is withheld.

    Args:
        drawn: the samples, in the order of the draws.
        config: K and the choices above.
        request: the state.
    """
    listed = visible_state(request, config).admissible_actions
    own, unused = _own(drawn, config, request, listed)
    if listed is None:
        return PolicyAlternatives(tuple(own), (), tuple(unused))
    missing = config.k - len(own) if config.unlisted == "replace" else 0
    extra = config.extra_admissible if config.alternatives == "mixture" else 0
    added = _spare(own, listed, config, request)[: missing + extra]
    return PolicyAlternatives(tuple(own), tuple(added), tuple(unused))


def wanted(config: CollectConfig, request: ProposalRequest) -> int:
    """Return how many alternatives of its own a policy is asked for in a state."""
    listed = visible_state(request, config).admissible_actions
    if listed is None or config.unlisted == "keep":
        return config.k
    return min(config.k, len(other_actions(listed, request.expert_action, request.canonical)))


def max_draws(config: CollectConfig, request: ProposalRequest) -> int:
    """Return how many responses are sampled in a state at most."""
    if not any(config.temperatures):
        # Every response would be the same.
        return min(1, config.k)
    if config.draws is not None:
        return config.draws
    return config.k if request.state.admissible_actions is not None else DRAWS_PER_ALTERNATIVE * config.k


def _own(
    drawn: Sequence[Proposal], config: CollectConfig, request: ProposalRequest, listed: Sequence[str] | None
) -> tuple[list[Proposal], list[tuple[Proposal, str]]]:
    """Return the samples that are alternatives, and the others with the reason."""
    canonical, expert_action = request.canonical, request.expert_action
    listed_forms = {canonical(action) for action in listed or ()}
    taken = set[str]()
    own, unused = list[Proposal](), list[tuple[Proposal, str]]()
    for proposal in drawn:
        form = canonical(proposal.action)
        if form == canonical(expert_action):
            unused.append((proposal, EXPERT_ACTION))
        elif not allowed_alternatives([proposal.action], expert_action, config):
            unused.append((proposal, EXPERT_TOOL))
        elif listed is not None and config.unlisted == "replace" and form not in listed_forms:
            unused.append((proposal, UNLISTED))
        elif form in taken:
            unused.append((proposal, REPEATED))
        elif len(own) < config.k:
            taken.add(form)
            own.append(proposal)
    return own, unused


def _spare(
    own: Sequence[Proposal], listed: Sequence[str], config: CollectConfig, request: ProposalRequest
) -> list[Proposal]:
    """Return the listed actions that are neither the policy's nor the expert's, in a random order."""
    canonical = request.canonical
    own_forms = {canonical(proposal.action) for proposal in own}
    seed = seed_of(config, request.task, request.ref.step)
    actions = sample_admissible(listed, request.expert_action, len(listed), seed, canonical)
    return [Proposal(action, "admissible") for action in actions if canonical(action) not in own_forms]
