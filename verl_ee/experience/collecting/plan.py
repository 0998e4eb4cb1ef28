"""The plan of a collection: every expert state and its alternatives, less the outcomes that are known already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from verl_ee.config import CollectConfig
from verl_ee.envs import CanonicalForm, ExpertTrajectory, canonical_form
from verl_ee.experience.branching.protocol import StateRequest, WorkUnit, env_steps_of
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts, counts_of
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.proposers import EXPERT, LISTED, Proposal, listed_proposals
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import state_key, transition_key

REPLAY_PIECES = 2
"""Pieces per worker of what is replayed: a state costs as much wherever it is executed, and more the later it is."""


class CollectionPlan:
    """Decides what is executed.

    Attributes:
        trajectories: trajectories of the expert file.
        proposals: alternatives of every state that has been decided.
        states: number of states.
    """

    def __init__(
        self,
        trajectories: Sequence[ExpertTrajectory],
        config: CollectConfig,
        cache: TransitionCache,
        journal: ProposalJournal,
        owner: str = "",
    ) -> None:
        """Compute the key of every state.

        Args:
            trajectories: trajectories of the expert file, all of one environment.
            config: K, seed, and whether the expert's own outcomes are wanted.
            cache: transitions that have been executed.
            journal: alternatives that this run has decided.
            owner: collection that alone may use the states; empty for a deterministic environment, whose states all
                collections share.
        """
        self.trajectories = trajectories
        self.states = sum(len(trajectory.steps) for trajectory in trajectories)
        self.proposals: dict[StateRef, tuple[Proposal, ...]] = {}
        self._config, self._cache, self._journal = config, cache, journal
        self._planned: dict[str, set[str]] = {}
        self._keys = [_state_keys(trajectory, index, owner) for index, trajectory in enumerate(trajectories)]

    def refs(self) -> Iterator[StateRef]:
        """Yield every state, in the order of the file."""
        for index, trajectory in enumerate(self.trajectories):
            for step in range(len(trajectory.steps)):
                yield StateRef(index, step)

    def key(self, ref: StateRef) -> str:
        """Return the hash of a state."""
        return self._keys[ref.trajectory][ref.step]

    def expert_action(self, ref: StateRef) -> str:
        """Return the expert's action in a state."""
        return self.trajectories[ref.trajectory].steps[ref.step].action

    def canonical(self, ref: StateRef) -> CanonicalForm:
        """Return the function that gives the canonical form of an action in a state."""
        return canonical_form(self.trajectories[ref.trajectory].environment)

    def decide(self, ref: StateRef) -> bool:
        """Decide a state's alternatives from the journal, or from the recorded list of actions.

        Returns:
            Whether that could be done. If not, a proposer is still to propose them, or a worker to see the list.
        """
        if ref in self.proposals:
            return True
        decided = self._journal.decided.get(ref)
        if decided is not None:
            self.proposals[ref] = decided.proposals
            return True
        trajectory = self.trajectories[ref.trajectory]
        listed = trajectory.steps[ref.step].admissible_actions
        if not self._config.wants_alternatives:
            self.proposals[ref] = ()
            return True
        if listed is None or self._config.alternatives not in LISTED:
            return False
        self.proposals[ref] = listed_proposals(self._config, trajectory, ref.step, listed)
        return True

    def record(self, ref: StateRef, decided: DecidedState) -> None:
        """Journal a state's alternatives, which it keeps from then on, and what they took."""
        kept = self.proposals.setdefault(ref, decided.proposals)
        self._journal.add(ref, replace(decided, proposals=kept))

    def counts(self, ref: StateRef) -> AlternativeCounts:
        """Return the counts of a decided state's alternatives."""
        step = self.trajectories[ref.trajectory].steps[ref.step]
        counts = counts_of(self.proposals[ref], step.admissible_actions, step.action, self._config, self.canonical(ref))
        decided = self._journal.decided.get(ref)
        if decided is None:
            return counts
        is_proposed = self._config.alternatives not in LISTED and counts.possible > 0
        is_unasked = is_proposed and not decided.responses and not counts.own
        return replace(
            counts,
            responses=decided.responses,
            without_action=decided.without_action,
            unasked=int(is_unasked),
        )

    def wanted(self, ref: StateRef) -> list[Proposal]:
        """Return the branches of a decided state in their order: the expert's action if it is wanted, alternatives."""
        expert = [Proposal(self.expert_action(ref), EXPERT)] if self._config.include_expert_transition else []
        return [*expert, *self.proposals[ref]]

    def missing_actions(self, ref: StateRef) -> list[str]:
        """Return the actions of a decided state whose outcome is wanted and not known."""
        known, canonical = self._cache.known(self.key(ref)), self.canonical(ref)
        return [proposal.action for proposal in self.wanted(ref) if canonical(proposal.action) not in known]

    def conflict(self, ref: StateRef, action: str) -> str | None:
        """Return how two outcomes of an action differ, or None if it has no more than one."""
        return self._cache.conflicts(self.key(ref)).get(self.canonical(ref)(action))

    def work_units(self, indices: Iterable[int]) -> list[WorkUnit]:
        """Return what is to be executed along some trajectories; one with nothing left to execute has no unit."""
        units = [self.work_unit(index) for index in indices]
        return [unit for unit in units if unit is not None]

    def work_unit(self, index: int) -> WorkUnit | None:
        """Return what is to be executed along a trajectory, or None.

        An action that another trajectory's unit executes, because it passes through the same state, is not requested
        again.
        """
        trajectory = self.trajectories[index]
        requests = [self._request(StateRef(index, step)) for step in range(len(trajectory.steps))]
        needed = tuple(request for request in requests if request is not None)
        return WorkUnit(index, trajectory, needed) if needed else None

    def _request(self, ref: StateRef) -> StateRequest | None:
        """Return the request of a state, or None if nothing is left to execute there."""
        state, canonical = self.key(ref), self.canonical(ref)
        planned = self._planned.setdefault(state, set())
        # Another execution would not tell which of two outcomes is right.
        known = planned | set(self._cache.known(state)) | set(self._cache.conflicts(state))
        sorted_known = tuple(sorted(known))
        include_expert = self._config.include_expert_transition and canonical(self.expert_action(ref)) not in known
        if ref not in self.proposals:
            return StateRequest(ref.step, None, sorted_known, include_expert)
        wanted = {canonical(proposal.action) for proposal in self.wanted(ref)}
        planned |= wanted
        if wanted <= known:
            return None
        alternatives = tuple(proposal.action for proposal in self.proposals[ref])
        return StateRequest(ref.step, alternatives, sorted_known, include_expert)


def split_work(units: Sequence[WorkUnit], restore: str, workers: int, listed: int) -> list[WorkUnit]:
    """Cut units that would keep one worker busy while others wait.

    Each piece of a walk executes the actions before its first state once more, so there are only as many pieces as an
    even share for each worker needs. Replay costs the same in pieces.

    Args:
        units: all that is to be done now.
        restore: how states are reached.
        workers: number of workers that share the work.
        listed: alternatives of a state where the environment chooses.
    """
    if workers == 1 or not units:
        return list(units)
    costs = [env_steps_of(unit, restore, listed) for unit in units]
    share = sum(costs) / workers / (REPLAY_PIECES if restore == "replay" else 1)
    pieces: list[WorkUnit] = []
    for unit, cost in zip(units, costs, strict=True):
        count = min(len(unit.requests), math.ceil(cost / share)) if share else 1
        pieces += _cut(unit, max(1, count), restore, listed)
    # The longest first, so that none is left for a single worker at the end.
    return sorted(pieces, key=lambda piece: -env_steps_of(piece, restore, listed))


def _cut(unit: WorkUnit, count: int, restore: str, listed: int) -> list[WorkUnit]:
    """Cut a unit into up to `count` pieces that cost about the same."""
    if count == 1:
        return [unit]
    weights = [_weight(unit, request, restore, listed) for request in unit.requests]
    total, reached = max(sum(weights), 1), 0
    groups: list[list[StateRequest]] = [[] for _ in range(count)]
    for request, weight in zip(unit.requests, weights, strict=True):
        groups[min(count - 1, reached * count // total)].append(request)
        reached += weight
    return [WorkUnit(unit.trajectory_index, unit.trajectory, tuple(group)) for group in groups if group]


def _weight(unit: WorkUnit, request: StateRequest, restore: str, listed: int) -> int:
    """Return the environment steps of one state: in replay with the way to it, else as a part of a walk."""
    if restore == "replay":
        return env_steps_of(WorkUnit(unit.trajectory_index, unit.trajectory, (request,)), restore, listed)
    return 1 + (listed if request.alternatives is None else len(request.alternatives))


def _state_keys(trajectory: ExpertTrajectory, index: int, owner: str) -> list[str]:
    """Return the key of the state before each step; with an owner no other trajectory has the same."""
    environment = {"id": trajectory.environment, "version": trajectory.version, "kwargs": dict(trajectory.kwargs)}
    canonical = canonical_form(trajectory.environment)
    first = state_key(environment, trajectory.task, trajectory.seed, (), f"{owner}:{index}" if owner else "")
    keys = [first]
    for step in trajectory.steps[:-1]:
        keys.append(transition_key(keys[-1], canonical(step.action)))
    return keys
