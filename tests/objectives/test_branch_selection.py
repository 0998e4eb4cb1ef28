"""The branches that examples are made of: alternatives of each class in turn, a limited share of refused actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from support.stage_worlds import World, config, executed

from verl_ee.config import WorldModelConfig
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.objectives.branch_selection import allowed_branches, chosen_alternatives
from verl_ee.objectives.reflection.situations import situations

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


def of_kinds(kinds: str) -> list[ExecutedBranch]:
    """Alternatives in a dark room: `c` changes it, `n` changes nothing, `r` is refused."""
    observations = {"c": "Light {}.", "n": "It is dark.", "r": "No {}."}
    return [
        executed(observations[kind].format(number), valid=kind != "r", step=number) for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "limit", "balanced", "chosen"),
    [
        # Seven change something, two are refused, one changes nothing.
        ("ccrcccnrcc", 4, True, [0, 1, 2, 6]),
        ("ccrcccnrcc", 5, True, [0, 1, 2, 6, 7]),
        ("ccrcccnrcc", 6, True, [0, 1, 2, 3, 6, 7]),
        ("ccrcccnrcc", 3, True, [0, 2, 6]),
        ("ccrcccnrcc", 2, True, [0, 2]),
        ("ccrcccnrcc", 1, True, [0]),
        ("ccrcccnrcc", 4, False, [0, 1, 2, 3]),
        ("ccrcccnrcc", None, True, list(range(10))),
        ("ccrcccnrcc", 99, True, list(range(10))),
        ("ccrcccnrcc", 0, True, []),
        # The class that comes first has the first turn.
        ("nnnrrc", 1, True, [0]),
        ("rrrn", 3, True, [0, 1, 3]),
        ("rrrr", 2, True, [0, 1]),
        ("", 2, True, []),
    ],
)
def test_alternatives_of_a_state_are_the_first_ones_or_those_of_each_class_in_turn(
    kinds: str, limit: int | None, balanced: bool, chosen: Sequence[int]
) -> None:
    alternatives = of_kinds(kinds)
    expected = [alternatives[number] for number in chosen]
    assert chosen_alternatives(alternatives, limit, "It is dark.", balanced) == expected


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({}, ["press 1", "press 2", "press 3", "jam 0", "jam 1"]),
        ({"per_state": 9}, ["press 1", "press 2", "press 3", "jam 0", "jam 1"]),
        ({"per_state": 3}, ["press 1", "press 2", "press 3"]),
        ({"per_state": 3, "balanced": True}, ["press 1", "press 2", "jam 0"]),
        ({"per_state": 1, "balanced": True}, ["press 1"]),
        ({"per_state": 0}, []),
    ],
)
def test_the_world_model_learns_so_many_alternatives_of_a_state_besides_the_expert_s_action(
    settings: dict[str, object], others: list[str], tmp_path: Path
) -> None:
    world = World(tmp_path, 2, 3, 2)
    examples = world.stage_data(config({"world_model": {}}, **settings)).examples("world_model")
    expected = [
        branch.transition[:12] for branch in world.branches if branch.proposer == "expert" or action(branch) in others
    ]
    assert [example.provenance.split(", ")[2] for example in examples] == expected


def test_a_rationale_is_shown_alternatives_of_each_class(tmp_path: Path) -> None:
    world = World(tmp_path, 2, 3, 2)
    shown = {
        balanced: [
            [action(branch) for branch in item.alternatives]
            for item in situations(world.trajectories, world.branches, 8, 3, balanced)
        ]
        for balanced in (False, True)
    }
    # The expert presses 0.
    assert shown == {
        False: [["press 1", "press 2", "press 3"]] * world.states,
        True: [["press 1", "press 2", "jam 0"]] * world.states,
    }


def action(branch: ExecutedBranch) -> str:
    return branch.outcome.action
