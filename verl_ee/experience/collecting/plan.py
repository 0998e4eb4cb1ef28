"""What there is to execute: every expert state and its alternatives, less what is known already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import StateRequest, Usage, WorkUnit, env_steps_of
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.proposers import LISTED, Proposal, listed_proposals
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import state_key, transition_key
from verl_ee.prompts.actions import canonical

REPLAY_PIECES = 2
"""Pieces per worker of what is replayed: a state costs as much wherever it is executed, and more the later it is."""


class CollectionPlan:
    """Decides what is executed.

    Attributes:
        trajectories: of the expert file.
        proposals: alternatives of every state that has been decided.
        states: how many states there are.
    """

    def __init__(
        self,
        trajectories: Sequence[ExpertTrajectory],
        config: CollectConfig,
        facts: TransitionCache,
        journal: ProposalJournal,
        owner: str = "",
    ) -> None:
        """Look up what is known.

        Args:
            trajectories: of the expert file, of one environment.
            config: K, seed, and whether the expert's own outcomes are wanted.
            facts: what has been executed.
            journal: what this run has answered.
            owner: of states that are not shared; empty for a deterministic environment.
        """
        self.trajectories, self.states = trajectories, sum(len(t.steps) for t in trajectories)
        self.proposals: dict[StateRef, tuple[Proposal, ...]] = {}
        self._config, self._cache, self._journal = config, facts, journal
        self._planned: dict[str, set[str]] = {}
        self._keys = [_keys(trajectory, index, owner) for index, trajectory in enumerate(trajectories)]

    def refs(self) -> Iterator[StateRef]:
        """Yield every state, in the order of the file."""
        for index, trajectory in enumerate(self.trajectories):
            yield from (StateRef(index, step) for step in range(len(trajectory.steps)))

    def key(self, ref: StateRef) -> str:
        """Return the hash of a state."""
        return self._keys[ref.trajectory][ref.step]

    def decide(self, ref: StateRef) -> bool:
        """Decide a state's alternatives from what was answered before, or from the recorded list of actions.

        Returns:
            Whether that could be done; else its alternatives are still to be proposed, or its list to be seen.
        """
        if ref in self.proposals:
            return True
        done = self._journal.done.get((ref.trajectory, ref.step))
        trajectory = self.trajectories[ref.trajectory]
        recorded = trajectory.steps[ref.step]
        if done is not None:
            self.proposals[ref] = done.proposals
        elif recorded.admissible_actions is not None and self._config.alternatives in LISTED:
            self.proposals[ref] = listed_proposals(self._config, trajectory, ref.step, recorded.admissible_actions)
        return ref in self.proposals

    def missing(self, ref: StateRef) -> list[str]:
        """Return the actions of a decided state whose outcome is not known, the expert's included if it is wanted."""
        known = self._cache.known(self.key(ref))
        return [action for action in self._wanted(ref) if canonical(action) not in known]

    def unit(self, index: int) -> WorkUnit | None:
        """Return what is to be executed along a trajectory, or None.

        What another trajectory's unit executes, because it comes by the same state, is not asked for again.
        """
        trajectory = self.trajectories[index]
        requests = [self._ask(StateRef(index, step)) for step in range(len(trajectory.steps))]
        left = tuple(ask for ask in requests if ask is not None)
        return WorkUnit(index, trajectory, left) if left else None

    def note(self, ref: StateRef, proposals: Sequence[Proposal], usage: Usage) -> None:
        """Journal a state's alternatives, which it keeps from then on, and what was spent on it."""
        kept = self.proposals.setdefault(ref, tuple(proposals))
        self._journal.add(ref.trajectory, ref.step, DecidedState(kept, usage))

    def _wanted(self, ref: StateRef) -> list[str]:
        expert = self.trajectories[ref.trajectory].steps[ref.step].action
        wanted = [expert] if self._config.include_expert_transition else []
        return wanted + [proposal.action for proposal in self.proposals[ref]]

    def _ask(self, ref: StateRef) -> StateRequest | None:
        state = self.key(ref)
        planned = self._planned.setdefault(state, set())
        known = planned | set(self._cache.known(state))
        expert = canonical(self.trajectories[ref.trajectory].steps[ref.step].action)
        wants_expert = self._config.include_expert_transition and expert not in known
        proposals = self.proposals.get(ref)
        if proposals is None:
            return StateRequest(ref.step, None, tuple(sorted(known)), wants_expert)
        actions = [canonical(action) for action in self._wanted(ref)]
        planned.update(actions)
        if all(action in known for action in actions):
            return None
        return StateRequest(
            ref.step, tuple(proposal.action for proposal in proposals), tuple(sorted(known)), wants_expert
        )


def split_work(units: Sequence[WorkUnit], restore: str, workers: int, listed: int) -> list[WorkUnit]:
    """Cut units that would keep one worker busy while others wait.

    A piece of a walk plays the actions before its first state once more, so there are only as many pieces as an even
    share for each worker needs; what is replayed costs the same in pieces.

    Args:
        units: all that is to be done now.
        restore: how states are reached.
        workers: that share the work.
        listed: alternatives of a state where the environment chooses.
    """
    if workers == 1 or not units:
        return list(units)
    costs = [env_steps_of(unit, restore, listed) for unit in units]
    share = sum(costs) / workers / (REPLAY_PIECES if restore == "replay" else 1)
    pieces = []
    for unit, cost in zip(units, costs, strict=True):
        count = min(len(unit.requests), math.ceil(cost / share)) if share else 1
        pieces += _cut(unit, max(1, count), restore, listed)
    # The longest first, so that none is left for a single worker at the end.
    return sorted(pieces, key=lambda piece: -env_steps_of(piece, restore, listed))


def _cut(unit: WorkUnit, count: int, restore: str, listed: int) -> list[WorkUnit]:
    """Cut a unit into up to `count` pieces that cost about the same."""
    if count == 1:
        return [unit]
    weights = [env_steps_of(WorkUnit(unit.index, unit.trajectory, (ask,)), restore, listed) for ask in unit.requests]
    if restore != "replay":
        weights = [1 + (listed if ask.actions is None else len(ask.actions)) for ask in unit.requests]
    total, reached = sum(weights), 0
    groups: list[list[StateRequest]] = [[] for _ in range(count)]
    for ask, weight in zip(unit.requests, weights, strict=True):
        groups[min(count - 1, reached * count // max(total, 1))].append(ask)
        reached += weight
    return [WorkUnit(unit.index, unit.trajectory, tuple(group)) for group in groups if group]


def _keys(trajectory: ExpertTrajectory, index: int, owner: str) -> list[str]:
    environment: Mapping[str, Any] = {
        "id": trajectory.environment,
        "version": trajectory.version,
        "kwargs": dict(trajectory.kwargs),
    }
    keys = [state_key(environment, trajectory.task, trajectory.seed, (), f"{owner}:{index}" if owner else "")]
    for step in trajectory.steps[:-1]:
        keys.append(transition_key(keys[-1], step.action))
    return keys
