"""Counts of alternatives, by hand: what was possible, what the policy wrote itself, and what there is in the end."""

from __future__ import annotations

from typing import Any

import pytest

from verl_ee.config import CollectConfig
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts, counts_of
from verl_ee.experience.proposers import Proposal

LISTED = ("look", "wait", "go north", "go south")


def counted(own: int, added: int, listed: tuple[str, ...] | None = LISTED, **config: Any) -> tuple[int, int, int]:
    """Return possible, own and filled of a state whose expert goes north."""
    proposals = [Proposal(f"own {number}", "policy") for number in range(own)]
    proposals += [Proposal(f"added {number}", "admissible") for number in range(added)]
    counts = counts_of(proposals, listed, "go north", CollectConfig.model_validate(config), str.strip)
    assert (counts.responses, counts.without_action) == (0, 0)
    return counts.possible, counts.own, counts.filled


@pytest.mark.parametrize(
    ("config", "own", "added", "listed", "expected"),
    [
        ({"k": 2, "alternatives": "policy"}, 1, 1, LISTED, (2, 1, 2)),
        # Three others are listed, so a fourth alternative is beyond what was possible.
        ({"k": 8, "alternatives": "policy"}, 4, 0, LISTED, (3, 3, 3)),
        ({"k": 8, "alternatives": "policy"}, 0, 3, LISTED, (3, 0, 3)),
        ({"k": 8, "alternatives": "policy"}, 2, 0, None, (8, 2, 2)),
        ({"k": 8, "alternatives": "policy", "withhold_expert_tool": True}, 1, 0, LISTED, (2, 1, 1)),
        ({"k": 2, "alternatives": "mixture", "extra_admissible": 2}, 1, 2, LISTED, (2, 1, 2)),
        ({"k": 2}, 0, 2, LISTED, (2, 0, 2)),
        ({"k": 2, "alternatives": "exhaustive"}, 0, 3, LISTED, (3, 0, 3)),
        # An environment that lists nothing has no alternatives where some were asked for.
        ({"k": 2}, 0, 0, None, (2, 0, 0)),
        # The list was seen by a worker alone, which took all that there is.
        ({"k": 8}, 0, 3, None, (3, 0, 3)),
        ({"k": 3}, 0, 0, ("go north",), (0, 0, 0)),
        ({"k": 0, "alternatives": "policy"}, 0, 0, LISTED, (0, 0, 0)),
        ({"k": 0, "alternatives": "exhaustive"}, 0, 0, None, (0, 0, 0)),
    ],
)
def test_counts_of_a_state(
    config: dict[str, Any],
    own: int,
    added: int,
    listed: tuple[str, ...] | None,
    expected: tuple[int, int, int],
) -> None:
    assert counted(own, added, listed, **config) == expected


def test_counts_add_up_and_give_shares() -> None:
    total = AlternativeCounts(6, 1, 3, 8, 2) + AlternativeCounts(2, 1, 1, 2, 2)
    assert total == AlternativeCounts(8, 2, 4, 10, 4)
    assert (total.own_share, total.filled_share) == (0.25, 0.5)
    assert total.text == "4 of 8 possible, 2 by the policy itself (40.0 % of 10 responses hold no action)"
    assert AlternativeCounts(4, 0, 3).text == "3 of 4 possible"


def test_where_nothing_was_possible_nothing_is_missing() -> None:
    assert (AlternativeCounts().own_share, AlternativeCounts().filled_share) == (1.0, 1.0)
