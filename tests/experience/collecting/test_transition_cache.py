"""The transition cache: transitions by state and action, one outcome for each, foreign files refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.damaged_tables import DAMAGES, Damage
from support.game_transitions import transition

from verl_ee.errors import StoreError
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.files.parquet import write_table
from verl_ee.experience.store import TRANSITION_SCHEMA, transition_row

TRANSITIONS = [
    transition(task, ["press 0"] * step, action)
    for task in ("game 3", "game 4")
    for step in range(4)
    for action in ("press 0", "jam", 'say "é"\n<|im_end|>')
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_parts_that_cannot_be_read_are_refused(tmp_path: Path, damage: Damage, words: list[str]) -> None:
    write_table(tmp_path / "1.parquet", [transition_row(item) for item in TRANSITIONS], TRANSITION_SCHEMA, {})
    damage(tmp_path / "1.parquet")
    with pytest.raises(StoreError) as raised:
        TransitionCache(tmp_path, str.strip)
    for word in (str(tmp_path / "1.parquet"), *words):
        assert word in str(raised.value)


def test_transitions_are_known_by_state_and_form(tmp_path: Path) -> None:
    cache = TransitionCache(tmp_path, str.strip)
    cache.add(TRANSITIONS)
    assert not list(tmp_path.iterdir())
    cache.flush()
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    again = TransitionCache(tmp_path, str.strip)
    assert (cache.known_at_start, again.known_at_start) == (frozenset(), {item.key for item in TRANSITIONS})
    for item in TRANSITIONS:
        assert again.known(item.state)[item.outcome.action] == item
    assert again.known("elsewhere") == {}
    again.add(TRANSITIONS)
    again.flush()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [{"observation": "dragon"}, {"valid": False}, {"valid": None}, {"done": True}, {"outcome_class": "x"}],
    ids=str,
)
def test_an_action_with_two_outcomes_is_not_known_and_everything_else_is(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    first = transition("game 3", ["press 0"], "press 1")
    second = replace(first, outcome=replace(first.outcome, action=" press 1\n", **change))
    other = transition("game 3", ["press 0"], "press 2")
    mine, yours = TransitionCache(tmp_path, str.strip), TransitionCache(tmp_path, str.strip)
    mine.add([first, other])
    mine.flush()
    mine.add([second])
    yours.add([second])
    yours.flush()
    # Whichever of the files is read first, and also where a third outcome comes.
    yours.add([first, second, replace(first, outcome=replace(first.outcome, observation="A third."))])
    yours.flush()
    for cache in (mine, yours, TransitionCache(tmp_path, str.strip)):
        (action,) = cache.conflicts(first.state)
        assert action == "press 1"
        assert "press 1" not in cache.known(first.state)
    again = TransitionCache(tmp_path, str.strip)
    assert again.known(first.state) == {"press 2": other}
    assert again.known_at_start == {other.key}
    message = again.conflicts(first.state)["press 1"]
    ((name, value),) = change.items()
    for word in (str(tmp_path), f"{name} was", repr(value), repr(getattr(first.outcome, name))):
        assert word in message


def test_equal_outcomes_are_no_conflict_however_often_they_come(tmp_path: Path) -> None:
    cache = TransitionCache(tmp_path, str.strip)
    for _ in range(2):
        cache.add(TRANSITIONS)
        cache.add(
            [replace(item, outcome=replace(item.outcome, action=f" {item.outcome.action}")) for item in TRANSITIONS]
        )
    assert all(not cache.conflicts(item.state) for item in TRANSITIONS)
    cache.flush()
    assert TransitionCache(tmp_path, str.strip).known_at_start == {item.key for item in TRANSITIONS}


def test_an_owner_shares_with_nobody(tmp_path: Path) -> None:
    cache = TransitionCache(tmp_path, str.strip)
    cache.add(
        [transition("game 3", [], "press 1", owner, observation=owner) for owner in ("", "run:0", "run:1", "other:0")]
    )
    cache.flush()
    assert len(TransitionCache(tmp_path, str.strip).known_at_start) == 4
