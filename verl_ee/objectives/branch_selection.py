"""The branches that examples are made of: alternatives of a state, and as many as settings and budget let through."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

from verl_ee.config import WorldModelConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.files.lazy_sequence import LazySequence
from verl_ee.experience.outcome import class_of
from verl_ee.experience.proposers import EXPERT

Item = TypeVar("Item")


def chosen_alternatives(
    alternatives: Sequence[ExecutedBranch], limit: int | None, observation: str, balanced: bool
) -> list[ExecutedBranch]:
    """Return at most `limit` alternatives of one state, in their order.

    Args:
        alternatives: all of the state, none of them the expert's own action.
        limit: None for all.
        observation: the observation of the state.
        balanced: take the first of each class of outcome, then the second of each, and so on; the classes are in the
            order in which they first come. Otherwise the first alternatives are taken.
    """
    return [alternatives[index] for index in _chosen(alternatives, limit, observation, balanced)]


def _chosen(
    alternatives: Sequence[ExecutedBranch], limit: int | None, observation: str, balanced: bool
) -> Sequence[int]:
    """Return the indices of `chosen_alternatives`."""
    if limit is None or not balanced:
        return range(len(alternatives))[:limit]
    classes: dict[str, list[int]] = {}
    for index, branch in enumerate(alternatives):
        classes.setdefault(class_of(branch.outcome, observation), []).append(index)
    rounds = itertools.zip_longest(*classes.values())
    in_turn = [index for indices in rounds for index in indices if index is not None]
    return sorted(in_turn[:limit])


def within_states(
    branches: Sequence[ExecutedBranch], trajectories: Sequence[ExpertTrajectory], config: WorldModelConfig
) -> Sequence[ExecutedBranch]:
    """Return the branches whose states have no more alternatives than the world model may learn of one.

    Args:
        branches: branches of the set, in the order of the expert file; the expert's own are kept.
        trajectories: trajectories of the expert file.
        config: how many alternatives a state may have, and how they are chosen.
    """
    if config.per_state is None:
        return branches
    kept: list[int] = []
    for ref, in_state in itertools.groupby(enumerate(branches), lambda item: item[1].ref):
        here = dict(in_state)
        observation = trajectories[ref.trajectory].steps[ref.step].observation
        others = {index: branch for index, branch in here.items() if branch.proposer != EXPERT}
        kept += (index for index in here if index not in others)
        chosen = _chosen(list(others.values()), config.per_state, observation, config.balanced)
        kept += (list(others)[index] for index in chosen)
    return picked(branches, kept)


def allowed_branches(branches: Sequence[ExecutedBranch], config: WorldModelConfig) -> Sequence[ExecutedBranch]:
    """Return the branches that the world model may learn from, in their order.

    Args:
        branches: branches of the set.
        config: whether the expert's are among them, and how large a share may be refused actions.
    """
    kept, refused = list[int](), list[int]()
    for index, branch in enumerate(branches):
        if config.include_expert_transition or branch.proposer != EXPERT:
            kept.append(index)
            refused += [index] if branch.outcome.refused else []
    surplus = max(0, len(refused) - _max_refused(config.max_refused, len(kept) - len(refused), len(refused)))
    dropped = set(random.Random(f"{config.seed}:refused").sample(refused, surplus))
    return picked(branches, [index for index in kept if index not in dropped])


def within_budget(items: Sequence[Item], limit: int | None, seed: int) -> Sequence[Item]:
    """Return at most `limit` items, drawn from all of them, in their order.

    Args:
        items: branches, or rows in their place.
        limit: most branches, from the budget; None for all.
        seed: seed of the draw.
    """
    if limit is None:
        return items
    indices = random.Random(f"{seed}:budget").sample(range(len(items)), min(limit, len(items)))
    return picked(items, sorted(indices))


def picked(items: Sequence[Item], indices: Sequence[int]) -> Sequence[Item]:
    """Return the items of some indices; those that are made as they are read stay so."""
    if isinstance(items, LazySequence):
        return items.take(indices)
    return [items[index] for index in indices]


def _max_refused(max_share: float, other_count: int, refused_count: int) -> int:
    """Return how many refused actions may stay beside the others."""
    # The decimal digits are meant: 0.6 / 0.4 is not 1.5 in floating point.
    share = Fraction(str(max_share))
    return refused_count if share >= 1 else int(share / (1 - share) * other_count)
