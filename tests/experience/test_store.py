"""The transition store: equal content gives equal bytes, nothing is lost, foreign files are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.damaged_tables import DAMAGES, Damage, missing
from support.game_transitions import GAME, transition

from verl_ee.errors import StoreError
from verl_ee.experience.files.parquet import VERSION
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import (
    BRANCHES,
    TRANSITIONS,
    Branch,
    Transition,
    read_branches,
    read_provenance,
    state_key,
    transition_key,
    transition_of,
    transition_row,
    write_store,
)

PROVENANCE = {"experts": "0a1b", "note": "é"}
Tables = tuple[list[Transition], list[Branch]]


@pytest.fixture
def collected() -> Tables:
    """Two experts of the same task, whose states are the same, and one of another."""
    transitions, branches = [], []
    for index, task in enumerate(("game 3", "game 3", "game 4")):
        for step in range(4):
            for order, action in enumerate(("press 0", "jam", 'say "é"\n<|im_end|>')):
                transitions.append(transition(task, ["press 0"] * step, action))
                proposer = "admissible" if order else "expert"
                branches.append(Branch(StateRef(index, step), order, proposer, "p" * order, "{}", transitions[-1].key))
    return transitions, branches


def test_the_store_gives_back_what_was_collected(tmp_path: Path, collected: Tables) -> None:
    transitions, branches = collected
    folder = tmp_path / "k=3" / "store"
    write_store(folder, transitions, branches, PROVENANCE)
    known = {transition.key: transition for transition in transitions}
    executed = read_branches(folder)
    assert [(item.ref, item.proposer, item.transition) for item in executed] == [
        (branch.ref, branch.proposer, branch.transition) for branch in branches
    ]
    for item in executed:
        assert item.outcome == known[item.transition].outcome
    assert sorted(path.name for path in folder.iterdir()) == sorted([TRANSITIONS, BRANCHES])
    rows = pq.read_table(folder / TRANSITIONS).to_pylist()
    assert {row["key"]: transition_of(row) for row in rows} == known
    assert rows == [transition_row(known[row["key"]]) for row in rows]
    assert len(rows) == len(known) < len(branches)
    assert [tuple(row.values()) for row in pq.read_table(folder / BRANCHES).to_pylist()] == [
        (*vars(item.ref).values(), item.order, item.proposer, item.policy, item.sampling, item.transition)
        for item in branches
    ]
    assert read_provenance(folder) == PROVENANCE | {"schema": str(VERSION)}


def test_equal_content_gives_equal_bytes(tmp_path: Path, collected: Tables) -> None:
    transitions, branches = collected
    write_store(tmp_path / "a", transitions, branches, PROVENANCE)
    rng = random.Random(0)
    others, shuffled = [*transitions, *transitions[:5]], list(branches)
    rng.shuffle(others)
    rng.shuffle(shuffled)
    write_store(tmp_path / "b", others, shuffled, PROVENANCE)
    write_store(tmp_path / "c", transitions[:-1], branches[:-1], PROVENANCE)
    for name in (TRANSITIONS, BRANCHES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_the_order_of_the_provenance_does_not_matter(tmp_path: Path, collected: Tables) -> None:
    for name, provenance in (("a", PROVENANCE), ("b", dict(reversed(PROVENANCE.items())))):
        write_store(tmp_path / name, *collected, provenance)
    assert (tmp_path / "a" / BRANCHES).read_bytes() == (tmp_path / "b" / BRANCHES).read_bytes()


def test_every_part_of_the_left_side_is_in_the_key() -> None:
    def key(
        task: str = "t", seed: int | None = 1, prefix: tuple[str, ...] = ("p", "q"), action: str = "r", **game: Any
    ) -> str:
        return transition_key(state_key(GAME | game, task, seed, prefix), action)

    keys = [
        key(),
        key(id="a/C-v0"),
        key(version="2"),
        key(kwargs={"x": 1, "y": 3}),
        key(task="u"),
        key(seed=2),
        key(seed=None),
        key(prefix=("p",)),
        key(prefix=("p q",)),
        key(prefix=("q", "p")),
        key(prefix=("p", "q", "r"), action=""),
        key(action="s"),
        transition_key(state_key(GAME, "t", 1, ("p", "q"), "mine"), "r"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(kwargs={"y": 2, "x": 1}) == keys[0]
    assert transition_key(state_key(dict(reversed(GAME.items())), "t", 1, ["p", "q"]), "r") == keys[0]


def test_a_store_of_the_version_before_is_read_without_classes(tmp_path: Path, collected: Tables) -> None:
    write_store(tmp_path, *collected, PROVENANCE)
    expected = read_branches(tmp_path)
    for name in (TRANSITIONS, BRANCHES):
        table = pq.read_table(tmp_path / name)
        metadata = {**(table.schema.metadata or {}), b"verl_ee.schema": b"2"}
        kept = [column for column in table.column_names if column != "outcome_class"]
        pq.write_table(table.select(kept).replace_schema_metadata(metadata), tmp_path / name)
    assert read_branches(tmp_path) == expected
    assert read_provenance(tmp_path) == PROVENANCE | {"schema": "2"}


def test_a_class_is_missing_only_where_files_had_none_yet(tmp_path: Path, collected: Tables) -> None:
    write_store(tmp_path, *collected, PROVENANCE)
    table = pq.read_table(tmp_path / TRANSITIONS)
    pq.write_table(table.drop_columns(["outcome_class"]), tmp_path / TRANSITIONS)
    with pytest.raises(StoreError, match=r"columns.*expected.*outcome_class"):
        read_branches(tmp_path)


def test_the_environment_s_words_on_an_outcome_are_kept(tmp_path: Path) -> None:
    told = [
        transition("game 3", [], f"press {number}", valid=valid, outcome_class=named)
        for number, (valid, named) in enumerate([(None, ""), (True, "over budget"), (False, "é\n")])
    ]
    branches = [Branch(StateRef(0, 0), order, "policy", "", "", item.key) for order, item in enumerate(told)]
    write_store(tmp_path, told, branches, {})
    assert [item.outcome for item in read_branches(tmp_path)] == [item.outcome for item in told]


@pytest.mark.parametrize("name", [TRANSITIONS, BRANCHES])
@pytest.mark.parametrize(("damage", "words"), [(missing, ["missing", "Collect again"]), *DAMAGES])
def test_a_store_that_cannot_be_read_is_refused(
    tmp_path: Path, collected: Tables, name: str, damage: Damage, words: list[str]
) -> None:
    write_store(tmp_path, *collected, PROVENANCE)
    damage(tmp_path / name)
    with pytest.raises(StoreError) as raised:
        read_branches(tmp_path)
    for word in (str(tmp_path / name), *words):
        assert word in str(raised.value)


def test_a_branch_without_its_transition_is_refused(tmp_path: Path, collected: Tables) -> None:
    transitions, branches = collected
    write_store(tmp_path, transitions, [*branches, Branch(StateRef(9, 0), 0, "expert", "", "", "feed")], PROVENANCE)
    with pytest.raises(StoreError, match=f"{BRANCHES}: transition feed is not in {TRANSITIONS}"):
        read_branches(tmp_path)
