"""The branches that a world model learns from: as many refused actions as its settings allow, drawn by chance."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from support.stage_worlds import executed

from verl_ee.config import WorldModelConfig
from verl_ee.objectives.branch_selection import allowed_branches

SHARES = ["0", "0.1", "0.25", "0.3", "0.5", "0.75", "0.9", "1"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("taken", "refused"), [(30, 30), (9, 100), (100, 9), (7, 3), (0, 20), (20, 0), (1, 1)])
def test_no_larger_share_is_refused_actions_than_allowed_and_no_more_are_left_out_than_needed(
    taken: int, refused: int, share: str
) -> None:
    branches = [executed(f"taken {number}", step=number) for number in range(taken)]
    branches += [executed(f"refused {number}", False, step=100 + number) for number in range(refused)]
    kept = allowed_branches(branches, WorldModelConfig(max_refused=float(share)))
    left = [branch for branch in kept if not branch.outcome.valid]
    # All that were taken, and as many of the others as the share allows, in their order.
    assert [branch for branch in kept if branch.outcome.valid] == branches[:taken]
    assert kept == [branch for branch in branches if branch in kept]
    fits = [n for n in range(refused + 1) if n == 0 or Fraction(n, n + taken) <= Fraction(share)]
    assert len(left) == max(fits)


def test_the_cap_on_refused_actions_is_exact_for_every_share_in_percent() -> None:
    wrong = []
    for percent in range(101):
        for taken in (1, 2, 3, 5, 7, 20, 29, 33, 43, 47, 59):
            branches = [executed("taken")] * taken
            branches += [executed("refused", False, step=number) for number in range(150)]
            kept = allowed_branches(branches, WorldModelConfig(max_refused=percent / 100))
            fits = [n for n in range(151) if n == 0 or 100 * n <= percent * (n + taken)]
            if len(kept) - taken != max(fits):
                wrong.append((percent, taken, len(kept) - taken, max(fits)))
    assert wrong == []


def test_what_is_left_out_is_chosen_by_chance_alone() -> None:
    branches = [executed(f"refused {number}", False, step=number) for number in range(20)]
    branches += [executed("taken")] * 5
    count = Counter(
        branch.ref.step
        for seed in range(400)
        for branch in allowed_branches(branches, WorldModelConfig(max_refused=0.5, seed=seed))
        if not branch.outcome.valid
    )
    # Each of twenty is among the five that stay in a quarter of the draws: 100 times, give or take 8.7.
    assert sum(count.values()) == 400 * 5
    assert set(count) == set(range(20))
    assert all(60 < count[number] < 140 for number in range(20))


def test_an_action_of_which_nothing_is_said_is_not_left_out_as_refused() -> None:
    branches = [executed("untold", None, step=number) for number in range(20)]
    assert allowed_branches(branches, WorldModelConfig(max_refused=0.0)) == branches
