"""The description of a transition store: counts by proposer, and branches in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.report_runs import cells

from verl_ee.errors import StoreError
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import TRANSITIONS, Branch, Transition, write_store
from verl_ee.report import store_text


def transition(
    key: str, state: str, action: str, observation: str, valid: bool | None = True, done: bool = False
) -> Transition:
    return Transition(key, state, "train/0", ("look",), Outcome(action, observation, valid, done))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two states: in the second, every outcome is the same, and one of them is the state unchanged."""
    transitions = [
        transition("a" * 64, "0", "go", "A hall."),
        transition("b" * 64, "0", "fly", "You cannot.", valid=False),
        transition("c" * 64, "a" * 64, "wait", "A hall.", done=True),
    ]
    sampled = ("policy", "tiny@base", '{"temperature": 1.0}')
    branches = [
        Branch(StateRef(0, 0), 0, "expert", "", "", "a" * 64),
        Branch(StateRef(0, 0), 1, *sampled, "b" * 64),
        Branch(StateRef(0, 1), 0, "expert", "", "", "c" * 64),
        Branch(StateRef(0, 1), 1, *sampled, "c" * 64),
    ]
    write_store(tmp_path / "store", transitions, branches, {"environment": "one", "collect": "{}"})
    return tmp_path / "store"


def test_a_store_is_counted(store: Path) -> None:
    lines = store_text(store).splitlines()
    assert lines[0] == f"store: {store}"
    assert {"environment: one", "collect: {}"} <= set(lines)
    assert "1 trajectories, 2 states, 4 branches, 3 transitions" in lines
    assert "branches that point to a transition of another: 1" in lines
    assert "states in which all outcomes are equal: 1 of 2" in lines
    assert cells(store_text(store), "expert") == ["expert", "2", "0.0", "100.0", "50.0", "7"]
    assert cells(store_text(store), "policy") == ["policy", "2", "50.0", "100.0", "50.0", "9"]


def test_samples_are_shown_in_full(store: Path) -> None:
    text = store_text(store, samples=9)
    assert text.count("\n--- trajectory 0, ") == 4
    assert '--- trajectory 0, step 0, by policy (tiny@base {"temperature": 1.0}): bbbbbbbbbbbb\n' in text
    assert "task train/0, after ['look']\n> fly   [refused]\nYou cannot." in text
    assert "> wait   [ends the episode]\nA hall." in text
    assert store_text(store, samples=1, seed=1) == store_text(store, samples=1, seed=1)


def test_a_store_that_is_not_complete_is_refused(store: Path) -> None:
    table = pq.read_table(store / TRANSITIONS)
    pq.write_table(table.slice(1), store / TRANSITIONS)
    with pytest.raises(StoreError, match=r"branches\.parquet: transition aaaaaaaaaaaa is not in transitions\.parquet"):
        store_text(store)


def test_what_an_environment_does_not_say_counts_neither_as_taken_nor_as_refused(tmp_path: Path) -> None:
    ref = StateRef(0, 0)
    told = {"a": None, "b": None, "c": False, "d": True}
    transitions = [transition(key * 64, "0", f"press {key}", "A hall.", valid) for key, valid in told.items()]
    branches = [Branch(ref, order, "policy", "", "", item.key) for order, item in enumerate(transitions)]
    write_store(tmp_path / "some", transitions, branches, {})
    assert cells(store_text(tmp_path / "some"), "policy")[2] == "50.0"
    write_store(tmp_path / "none", transitions[:2], branches[:2], {})
    assert cells(store_text(tmp_path / "none"), "policy")[2] == "-"
    assert "refused]" not in store_text(tmp_path / "none", samples=2)


def test_the_class_of_an_outcome_is_shown(tmp_path: Path) -> None:
    item = transition("a" * 64, "0", "book", "Over budget.", False, True)
    item = replace(item, outcome=replace(item.outcome, outcome_class="budget"))
    write_store(tmp_path, [item], [Branch(StateRef(0, 0), 0, "policy", "", "", item.key)], {})
    assert "> book   [refused, ends the episode, class budget]\n" in store_text(tmp_path, samples=1)
