"""What there is to execute: every expert state and its alternatives, less what is known already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.facts import Done, Facts, Journal
from verl_ee.experience.proposers import LISTED, Proposal, listed_proposals
from verl_ee.experience.rendering import canonical
from verl_ee.experience.store import state_key, transition_key
from verl_ee.experience.work import Ask, Unit, Used, steps_of

REPLAY_PIECES = 2
"""Pieces per worker of what is replayed: a state costs as much wherever it is executed, and more the later it is."""


@dataclass(frozen=True)
class Place:
    """A state of an expert trajectory.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
    """

    trajectory: int
    step: int


class Plan:
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
        facts: Facts,
        journal: Journal,
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
        self.proposals: dict[Place, tuple[Proposal, ...]] = {}
        self._config, self._facts, self._journal = config, facts, journal
        self._planned: dict[str, set[str]] = {}
        self._keys = [_keys(trajectory, index, owner) for index, trajectory in enumerate(trajectories)]

    def places(self) -> Iterator[Place]:
        """Yield every state, in the order of the file."""
        for index, trajectory in enumerate(self.trajectories):
            yield from (Place(index, step) for step in range(len(trajectory.steps)))

    def key(self, place: Place) -> str:
        """Return the hash of a state."""
        return self._keys[place.trajectory][place.step]

    def decide(self, place: Place) -> bool:
        """Decide a state's alternatives from what was answered before, or from the recorded list of actions.

        Returns:
            Whether that could be done; else its alternatives are still to be proposed, or its list to be seen.
        """
        if place in self.proposals:
            return True
        done = self._journal.done.get((place.trajectory, place.step))
        trajectory = self.trajectories[place.trajectory]
        recorded = trajectory.steps[place.step]
        if done is not None:
            self.proposals[place] = done.proposals
        elif recorded.admissible_actions is not None and self._config.alternatives in LISTED:
            self.proposals[place] = listed_proposals(self._config, trajectory, place.step, recorded.admissible_actions)
        return place in self.proposals

    def missing(self, place: Place) -> list[str]:
        """Return the actions of a decided state whose outcome is not known, the expert's included if it is wanted."""
        known = self._facts.known(self.key(place))
        return [action for action in self._wanted(place) if canonical(action) not in known]

    def unit(self, index: int) -> Unit | None:
        """Return what is to be executed along a trajectory, or None.

        What another trajectory's unit executes, because it comes by the same state, is not asked for again.
        """
        trajectory = self.trajectories[index]
        asks = [self._ask(Place(index, step)) for step in range(len(trajectory.steps))]
        left = tuple(ask for ask in asks if ask is not None)
        return Unit(index, trajectory, left) if left else None

    def note(self, place: Place, proposals: Sequence[Proposal], used: Used) -> None:
        """Journal a state's alternatives, which it keeps from then on, and what was spent on it."""
        kept = self.proposals.setdefault(place, tuple(proposals))
        self._journal.add(place.trajectory, place.step, Done(kept, used))

    def _wanted(self, place: Place) -> list[str]:
        expert = self.trajectories[place.trajectory].steps[place.step].action
        wanted = [expert] if self._config.include_expert_transition else []
        return wanted + [proposal.action for proposal in self.proposals[place]]

    def _ask(self, place: Place) -> Ask | None:
        state = self.key(place)
        planned = self._planned.setdefault(state, set())
        known = planned | set(self._facts.known(state))
        expert = canonical(self.trajectories[place.trajectory].steps[place.step].action)
        wants_expert = self._config.include_expert_transition and expert not in known
        proposals = self.proposals.get(place)
        if proposals is None:
            return Ask(place.step, None, tuple(sorted(known)), wants_expert)
        actions = [canonical(action) for action in self._wanted(place)]
        planned.update(actions)
        if all(action in known for action in actions):
            return None
        return Ask(place.step, tuple(proposal.action for proposal in proposals), tuple(sorted(known)), wants_expert)


def split(units: Sequence[Unit], way: str, workers: int, listed: int) -> list[Unit]:
    """Cut units that would keep one worker busy while others wait.

    A piece of a walk plays the actions before its first state once more, so there are only as many pieces as an even
    share for each worker needs; what is replayed costs the same in pieces.

    Args:
        units: all that is to be done now.
        way: how states are reached.
        workers: that share the work.
        listed: alternatives of a state where the environment chooses.
    """
    if workers == 1 or not units:
        return list(units)
    costs = [steps_of(unit, way, listed) for unit in units]
    share = sum(costs) / workers / (REPLAY_PIECES if way == "replay" else 1)
    pieces = []
    for unit, cost in zip(units, costs, strict=True):
        count = min(len(unit.asks), math.ceil(cost / share)) if share else 1
        pieces += _cut(unit, max(1, count), way, listed)
    # The longest first, so that none is left for a single worker at the end.
    return sorted(pieces, key=lambda piece: -steps_of(piece, way, listed))


def _cut(unit: Unit, count: int, way: str, listed: int) -> list[Unit]:
    """Cut a unit into up to `count` pieces that cost about the same."""
    if count == 1:
        return [unit]
    weights = [steps_of(Unit(unit.index, unit.trajectory, (ask,)), way, listed) for ask in unit.asks]
    if way != "replay":
        weights = [1 + (listed if ask.actions is None else len(ask.actions)) for ask in unit.asks]
    total, reached = sum(weights), 0
    groups: list[list[Ask]] = [[] for _ in range(count)]
    for ask, weight in zip(unit.asks, weights, strict=True):
        groups[min(count - 1, reached * count // max(total, 1))].append(ask)
        reached += weight
    return [Unit(unit.index, unit.trajectory, tuple(group)) for group in groups if group]


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
