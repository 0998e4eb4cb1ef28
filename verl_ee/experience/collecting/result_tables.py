"""The tables of a finished collection, put together from its plan and the transitions that are known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from verl_ee.experience.collecting.plan import CollectionPlan
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Branch, Transition


@dataclass
class ResultTables:
    """The rows of both tables.

    Attributes:
        transitions: by key, each once.
        branches: every wanted action that has an outcome.
        actions: number of wanted actions, those without an outcome included.
    """

    transitions: dict[str, Transition] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=list)
    actions: int = 0


def result_tables(plan: CollectionPlan, cache: TransitionCache, lost: Collection[StateRef]) -> ResultTables:
    """Return the rows of a collection.

    Args:
        plan: the branches that are wanted; every state that is not lost is decided.
        cache: the transitions that are known.
        lost: states that could not be reached; they have no branches.
    """
    tables = ResultTables()
    for ref in plan.refs():
        if ref in lost:
            continue
        known, canonical = cache.known(plan.key(ref)), plan.canonical(ref)
        wanted = plan.wanted(ref)
        tables.actions += len(wanted)
        for order, proposal in enumerate(wanted):
            transition = known.get(canonical(proposal.action))
            if transition is not None:
                tables.transitions[transition.key] = transition
                tables.branches.append(_branch(ref, order, proposal, transition.key))
    return tables


def _branch(ref: StateRef, order: int, proposal: Proposal, transition: str) -> Branch:
    return Branch(ref, order, proposal.proposer, proposal.policy, proposal.sampling, transition)
