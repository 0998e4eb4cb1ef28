"""Totals of collected sets, and their sum."""

from __future__ import annotations

from dataclasses import replace

from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.cost import Cost
from verl_ee.run.set_totals import SetTotals, total_of

TOTALS = SetTotals(
    **{"states": 1, "transitions": 2, "mismatches": 3, "env_steps": 4, "seconds": 0.5, "branches": 6, "reused": 7},
    **{"failed": 8, "resets": 9, "prompt_tokens": 10, "completion_tokens": 11, "bytes": 12},
    **{"possible": 13, "own": 14, "filled": 15, "responses": 16, "without_action": 17, "unasked": 18},
    faults={"raised": 2, "died": 1},
    restore="snapshot",
)


def test_every_number_is_added() -> None:
    total = TOTALS + replace(TOTALS, faults={"died": 4, "observation": 1})
    counts = {key: value for key, value in vars(TOTALS).items() if isinstance(value, int | float)}
    assert len(counts) == 18
    assert {key: getattr(total, key) for key in counts} == {key: 2 * value for key, value in counts.items()}
    assert total.faults == {"raised": 2, "died": 5, "observation": 1}


def test_restore_methods_are_named_once() -> None:
    methods = ["", "snapshot", "fork", "snapshot"]
    assert total_of(replace(TOTALS, restore=method) for method in methods).restore == "snapshot+fork"


def test_money_is_known_where_every_set_has_it() -> None:
    assert total_of([replace(TOTALS, money=1.0), replace(TOTALS, money=2.5)]).money == 3.5
    assert total_of([replace(TOTALS, money=1.0), TOTALS]).money is None
    assert "money" not in TOTALS.to_json()
    assert replace(TOTALS, money=1.0).to_json()["money"] == 1.0


def test_a_collection_is_priced() -> None:
    result = CollectionResult(states=3, lost=1, restore="fork", cost=Cost(env_steps=100, seconds=2.0))
    totals = SetTotals.of(result, {"env_steps": 0.5})
    assert (totals.mismatches, totals.restore, totals.env_steps, totals.money) == (1, "fork", 100, 50.0)
    assert SetTotals.of(result).money is None
