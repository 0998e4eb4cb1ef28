"""The branches that a world model learns from: those that its settings allow, as many as its budget lets through."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

from verl_ee.config import WorldModelConfig
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.store import ExecutedBranch

Item = TypeVar("Item")


def allowed_branches(branches: Sequence[ExecutedBranch], config: WorldModelConfig) -> list[ExecutedBranch]:
    """Return the branches that the world model may learn from, in their order.

    Args:
        branches: branches of the set.
        config: whether the expert's are among them, and how large a share may be refused actions.
    """
    kept = [branch for branch in branches if config.include_expert_transition or branch.proposer != EXPERT]
    refused = [index for index, branch in enumerate(kept) if branch.outcome.refused]
    surplus = max(0, len(refused) - _max_refused(config.max_refused, len(kept) - len(refused), len(refused)))
    dropped = set(random.Random(f"{config.seed}:refused").sample(refused, surplus))
    return [branch for index, branch in enumerate(kept) if index not in dropped]


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
    return [items[index] for index in sorted(indices)]


def _max_refused(max_share: float, other_count: int, refused_count: int) -> int:
    """Return how many refused actions may stay beside the others."""
    # The decimal digits are meant: 0.6 / 0.4 is not 1.5 in floating point.
    share = Fraction(str(max_share))
    return refused_count if share >= 1 else int(share / (1 - share) * other_count)
