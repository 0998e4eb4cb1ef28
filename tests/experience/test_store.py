"""The transition store and its parts: equal content gives equal bytes, nothing is lost, foreign files are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.game_transitions import BATCHES, GAME, WRITERS, transition, write_parts, written

from verl_ee.errors import StoreError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.files.parquet import VERSION, write_table
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import (
    BRANCHES,
    TRANSITION_SCHEMA,
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
from verl_ee.prompts.actions import canonical

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


@pytest.mark.parametrize("written", ['"{}"', " {} ", "{}.", "`{}`", "'{} '."])
def test_forms_of_one_action_share_a_key(written: str) -> None:
    path = ["go to the shelf", "look"]
    forms = [written.format(action) for action in path]
    assert state_key(GAME, "t", 1, forms) == state_key(GAME, "t", 1, path)
    assert transition_key("state", forms[0]) == transition_key("state", path[0])
    assert transition_key("state", forms[0]) != transition_key("state", "Go to the shelf")


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scrambled(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 40) + content[-36:])


def newer(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_ee.schema": str(VERSION + 1)}), path)


def older(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_ee.schema": str(VERSION - 1)}), path)


def unmarked(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def fewer_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["key"]), path)


def more_columns(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("reward", pa.array([1.0] * len(table))), path)


DAMAGES: list[tuple[Callable[[Path], None], list[str]]] = [
    (empty, ["not a Parquet file", "Collect again"]),
    (cut_off, ["not a Parquet file", "Collect again"]),
    (scrambled, ["not a Parquet file", "Collect again"]),
    (newer, [f"has schema {VERSION + 1}", f"reads {VERSION}", "Update verl_ee"]),
    (older, [f"has schema {VERSION - 1}", f"reads {VERSION}", "Collect again"]),
    (unmarked, ["has schema (none)", "Collect again"]),
    (fewer_columns, ["columns", "key", "Collect again"]),
    (more_columns, ["columns", "reward", "Collect again"]),
]


@pytest.mark.parametrize("name", [TRANSITIONS, BRANCHES])
@pytest.mark.parametrize(("damage", "words"), [(missing, ["missing", "Collect again"]), *DAMAGES])
def test_a_store_that_cannot_be_read_is_refused(
    tmp_path: Path, collected: Tables, name: str, damage: Callable[[Path], None], words: list[str]
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


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_parts_that_cannot_be_read_are_refused(
    tmp_path: Path, collected: Tables, damage: Callable[[Path], None], words: list[str]
) -> None:
    write_table(tmp_path / "1.parquet", [transition_row(item) for item in collected[0]], TRANSITION_SCHEMA, {})
    damage(tmp_path / "1.parquet")
    with pytest.raises(StoreError) as raised:
        TransitionCache(tmp_path)
    for word in (str(tmp_path / "1.parquet"), *words):
        assert word in str(raised.value)


def test_facts_are_found_by_state_and_form(tmp_path: Path, collected: Tables) -> None:
    cache = TransitionCache(tmp_path)
    cache.add(collected[0])
    assert not list(tmp_path.iterdir())
    cache.flush()
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    again = TransitionCache(tmp_path)
    assert (cache.known_at_start, again.known_at_start) == (frozenset(), {item.key for item in collected[0]})
    for item in collected[0]:
        assert again.known(item.state)[canonical(item.outcome.action)] == item
    assert again.known("elsewhere") == {}
    again.add(collected[0])
    again.flush()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_journal_keeps_proposals_word_by_word(tmp_path: Path) -> None:
    proposals = (Proposal("press 1", "policy", "17", '{"temperature": 0.5}'), Proposal(" 'é' ", "other"))
    journal = ProposalJournal(tmp_path)
    first, second = StateRef(3, 2), StateRef(3, 4)
    journal.add(first, DecidedState(proposals, Usage(5, 1)))
    journal.flush()
    journal.add(second, DecidedState((), Usage()))
    journal.add(first, DecidedState(proposals, Usage(2, 0)))
    journal.flush()
    for now in (journal, ProposalJournal(tmp_path)):
        assert now.decided == {first: DecidedState(proposals, Usage(7, 1)), second: DecidedState((), Usage())}


@pytest.mark.parametrize("change", [{"observation": "dragon"}, {"valid": False}, {"done": True}], ids=str)
def test_two_outcomes_of_one_transition_are_refused_with_both(tmp_path: Path, change: dict[str, Any]) -> None:
    first = transition("game 3", ["press 0"], "press 1")
    second = replace(first, outcome=replace(first.outcome, action=" 'press 1'.", **change))
    mine, yours = TransitionCache(tmp_path), TransitionCache(tmp_path)
    mine.add([first])
    mine.flush()
    with pytest.raises(StoreError, match="Two outcomes of one transition"):
        mine.add([second])
    yours.add([second])
    yours.flush()
    with pytest.raises(StoreError) as raised:
        TransitionCache(tmp_path)
    for word in (
        str(tmp_path),
        "'game 3'",
        "after 1 actions",
        "press 1",
        repr(first.outcome.observation),
        "nondeterministic",
    ):
        assert word in str(raised.value)
    assert repr(second.outcome.observation) in str(raised.value)


def test_an_owner_shares_with_nobody(tmp_path: Path) -> None:
    cache = TransitionCache(tmp_path)
    cache.add(
        [transition("game 3", [], "press 1", owner, observation=owner) for owner in ("", "run:0", "run:1", "other:0")]
    )
    cache.flush()
    assert len(TransitionCache(tmp_path).known_at_start) == 4


def test_many_write_while_others_read_and_put_together(tmp_path: Path) -> None:
    expected = {item.key for writer in range(WRITERS) for batch in written(writer) for item in batch}
    read_before: frozenset[str] = frozenset()
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        writers = [pool.submit(write_parts, tmp_path, writer) for writer in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            now = TransitionCache(tmp_path).known_at_start
            assert read_before <= now <= expected
            read_before = now
        for writer in writers:
            writer.result()
    assert TransitionCache(tmp_path).known_at_start == expected
    files = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(".parquet") and not name.startswith(".") for name in files)
    assert len(files) < WRITERS * BATCHES


def test_putting_together_again_loses_nothing(tmp_path: Path) -> None:
    cache, expected = TransitionCache(tmp_path), set[str]()
    for number in range(9):
        cache.add([transition("game 3", [], f"press {number}")])
        cache.flush()
        expected.add(transition("game 3", [], f"press {number}").key)
        if number % 3 == 2:
            cache.parts.join()
        assert TransitionCache(tmp_path).known_at_start == expected
