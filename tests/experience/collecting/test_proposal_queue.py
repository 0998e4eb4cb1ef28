"""Alternatives of a proposer: requested in batches while environments step, kept over a restart, and checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.game_collections import LISTED, open_collection
from support.games import Game, expert, shown

from verl_ee.errors import BranchError
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.collecting.alternative_shares import EARLY_STATES
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.collecting.proposal_journal import ProposalJournal
from verl_ee.experience.proposers import NO_ACTION, Proposal, ProposalBatch, ProposalRequest, UnusedResponse
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import BRANCHES, read_branches
from verl_ee.prompts.state import Turn

pytestmark = pytest.mark.usefixtures("cluster")
TRAJECTORIES = [expert(f"game {number}", 6) for number in range(30)]
STATES, BATCHES = 180, 30
"""A batch is a trajectory: the window below holds eight, and is made of batches of at least three states."""
WINDOW = 48
POLICY = {"alternatives": "policy", "k": 2}
Act = Callable[[int], None]


class Chooser:
    """Proposes two buttons for every state.

    Args:
        name: of the proposer.
        buttons: their numbers.
        before: called with the number of the batch before it is answered.
    """

    def __init__(
        self, name: str = "first", buttons: tuple[int, int] = (1, 2), before: Act = lambda batch: None
    ) -> None:
        self.name, self.buttons, self.before, self.window = name, buttons, before, WINDOW
        self.batches: list[list[ProposalRequest]] = []
        self._lock = threading.Lock()

    def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        with self._lock:
            self.batches.append(list(requests))
            batch = len(self.batches)
        self.before(batch)
        return ProposalBatch(tuple(map(self.alternatives, requests)), 10 * len(requests), 3)

    def alternatives(self, request: ProposalRequest) -> tuple[Proposal, ...]:
        return tuple(
            Proposal(f"press {button}", self.name, "step 0", f"{request.ref.trajectory}.{request.ref.step}")
            for button in self.buttons
        )

    @property
    def requests(self) -> list[ProposalRequest]:
        return [request for batch in self.batches for request in batch]


def collect(folder: Path, proposer: Chooser, history_length: int = 2, **values: Any) -> CollectionResult:
    """Collect with a proposer."""
    collection = open_collection(folder, trajectories=TRAJECTORIES, **POLICY | values)
    return collection.run(proposer, history_length, quiet=True)


@pytest.mark.parametrize("early", [True, False])
def test_a_collection_that_a_budget_stops_knows_its_shares(early: bool, tmp_path: Path) -> None:
    # Three times the states after which a policy is judged for the first time, or fewer than these.
    trajectories = [expert(f"game {number}", 6) for number in range(EARLY_STATES // 2 if early else 4)]
    collection = open_collection(tmp_path, trajectories=trajectories, **POLICY)
    states = 6 * len(trajectories)
    assert collection.result == CollectionResult(states=states)
    with pytest.raises(BranchError, match="The policy itself wrote 0 of"):
        collection.run(Chooser(buttons=()), quiet=True)
    result, decided = collection.result, len(collection.plan.proposals)
    assert (decided < states) == early
    counts: AlternativeCounts = result.alternatives
    assert (counts.possible, counts.own, counts.filled) == (2 * decided, 0, 0)
    assert (result.states, result.lost, result.failed, result.cost.bytes) == (states, 0, 0, 0)
    assert result.cost.prompt_tokens >= 10 * decided
    assert result.cost.seconds > 0
    if not early:
        # Only the expert's own outcomes are there.
        assert (result.branches, result.transitions) == (states, states)
        assert result.cost.env_steps > 0


def wait_for_a_report(folder: Path) -> None:
    """Wait until something that a worker has reported is on disk, by which a killed run would go on."""
    for _ in range(3000):
        if list((folder / "parts" / "transitions").glob("*.parquet")):
            return
        threading.Event().wait(0.02)
    raise AssertionError("no worker reported anything while the proposer was busy")


def test_every_state_is_asked_about_once_as_the_agent_sees_it(tmp_path: Path) -> None:
    proposer = Chooser()
    result = collect(tmp_path, proposer)
    requests = {request.ref: request for request in proposer.requests}
    assert len(requests) == len(proposer.requests) == STATES
    assert len(proposer.batches) == BATCHES
    assert all(len({request.ref.trajectory for request in batch}) == 1 for batch in proposer.batches)
    for ref, request in requests.items():
        trajectory, step = TRAJECTORIES[ref.trajectory], ref.step
        assert request.expert_action == "press 0"
        assert request.state.observation == trajectory.steps[step].observation
        past = trajectory.steps[max(step - 2, 0) : step]
        assert request.state.history == tuple(
            Turn(turn.observation, turn.action, admissible_actions=turn.admissible_actions) for turn in past
        )
        assert request.state.admissible_actions == Game().actions
    assert (result.cost.prompt_tokens, result.cost.completion_tokens) == (10 * STATES, 3 * BATCHES)
    assert (result.branches, result.lost, result.failed, result.faults) == (3 * STATES, 0, 0, {})


def test_what_was_proposed_is_executed_and_stored_with_its_origin(tmp_path: Path) -> None:
    collect(tmp_path, Chooser(buttons=(4, 7)))
    branches = read_branches(tmp_path)
    rows = pq.read_table(tmp_path / BRANCHES).to_pylist()
    for branch, row in zip(branches, rows, strict=True):
        path, action = ["press 0"] * branch.ref.step, branch.outcome.action
        assert branch.outcome.observation == shown(f"game {branch.ref.trajectory}", 7, [*path, action])
        assert action == f"press {(0, 4, 7)[row['order']]}"
        ref = f"{row['trajectory']}.{row['step']}"
        origin = (row["proposer"], row["policy"], row["sampling"])
        assert origin == (("first", "step 0", ref) if row["order"] else ("expert", "", ""))
    assert [(row["trajectory"], row["step"], row["order"]) for row in rows] == [
        (index, step, order) for index in range(30) for step in range(6) for order in range(3)
    ]


def test_a_slow_answer_holds_up_no_other(tmp_path: Path) -> None:
    others = threading.Event()

    def wait(batch: int) -> None:
        if batch == BATCHES:
            others.set()
        if batch == 1:
            assert others.wait(60)

    assert collect(tmp_path, Chooser(before=wait)).branches == 3 * STATES


def test_as_many_states_are_under_way_as_the_window_holds(tmp_path: Path) -> None:
    full = threading.Barrier(WINDOW // 6)
    counts: list[int] = []

    class Counting(Chooser):
        under_way = 0

        def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
            with self._lock:
                Counting.under_way += len(requests)
                counts.append(Counting.under_way)
            # Nobody is answered before the window is full; the last ones do not fill it.
            if len(self.batches) < WINDOW // 6:
                full.wait(60)
            answer = super().propose(requests)
            with self._lock:
                Counting.under_way -= len(requests)
            return answer

    collect(tmp_path, Counting())
    assert max(counts) == WINDOW


def test_environments_step_while_the_proposer_is_busy(tmp_path: Path) -> None:
    reported = threading.Event()

    def wait(batch: int) -> None:
        if batch > 1:
            wait_for_a_report(tmp_path)
            reported.set()

    result = collect(tmp_path, Chooser(before=wait))
    assert reported.is_set()
    assert result.branches == 3 * STATES


def test_what_was_proposed_for_states_that_are_done_stays(tmp_path: Path) -> None:
    def fail(batch: int) -> None:
        if batch == BATCHES:
            wait_for_a_report(tmp_path)
            raise RuntimeError("no more credit")

    with pytest.raises(RuntimeError, match="no more credit"):
        collect(tmp_path, Chooser(before=fail))
    kept = set(ProposalJournal(tmp_path / "parts" / "proposals").decided)
    assert 0 < len(kept) < STATES

    second = Chooser("second", (3, 4))
    result = collect(tmp_path, second)
    every = {StateRef(index, step) for index in range(30) for step in range(6)}
    assert {request.ref for request in second.requests} == every - kept
    assert result.cost.prompt_tokens == 10 * (STATES - len(kept))
    rows = pq.read_table(tmp_path / BRANCHES).to_pylist()
    for row in rows:
        if row["order"]:
            assert row["proposer"] == ("first" if StateRef(row["trajectory"], row["step"]) in kept else "second")
    assert len(rows) == 3 * STATES


def test_fewer_alternatives_or_none_are_no_fault(tmp_path: Path) -> None:
    class Shy(Chooser):
        def alternatives(self, request: ProposalRequest) -> tuple[Proposal, ...]:
            return super().alternatives(request)[: request.ref.step % 3]

    result = collect(tmp_path, Shy())
    assert (result.branches, result.failed) == (STATES + 30 * (0 + 1 + 2 + 0 + 1 + 2), 0)


class Mute(Chooser):
    """Samples four responses per state, of which two hold no action and the others are the expert's or one button."""

    def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        silence = (UnusedResponse("Hm.", NO_ACTION), UnusedResponse("Well.", NO_ACTION))
        alternatives = tuple(self.alternatives(item)[: int(item.ref.trajectory % 10 == 0)] for item in requests)
        super().propose(requests)
        return ProposalBatch(alternatives, responses=(4,) * len(requests), unused=(silence,) * len(requests))


def test_a_policy_that_writes_too_little_ends_collecting_and_a_lower_share_goes_on_from_there(tmp_path: Path) -> None:
    # One of two possible alternatives in every tenth trajectory: 5 %.
    with pytest.raises(BranchError) as raised:
        collect(tmp_path, Mute(), min_own=0.08, min_filled=0.0)
    message = str(raised.value)
    assert "wrote 18 of 360 alternatives that were possible (5.0 %), fewer than --min-own=0.08" in message
    assert "360 of 720 responses hold no action" in message
    assert message.count("--- a response (no action):\nHm.") == 2
    again = Mute()
    result = collect(tmp_path, again, min_own=0.05, min_filled=0.0)
    assert again.batches == []
    assert result.branches == STATES + 18
    assert result.alternatives == AlternativeCounts(360, 18, 18, 720, 360)


def test_a_policy_far_from_its_share_is_stopped_before_all_states_are_sampled(tmp_path: Path) -> None:
    proposer = Mute()
    with pytest.raises(BranchError, match=r"possible after \d+ states"):
        collect(tmp_path, proposer)
    assert len(proposer.requests) < STATES


def test_a_proposer_that_answers_too_little_is_refused(tmp_path: Path) -> None:
    class Forgetful(Chooser):
        def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
            return super().propose(requests[1:])

    with pytest.raises(BranchError, match=r"answered 5 of 6 states.*one tuple of alternatives per request"):
        collect(tmp_path, Forgetful())


@pytest.mark.parametrize("written", ["press 0", " press 0\n"])
def test_a_proposer_that_offers_the_experts_action_is_refused(tmp_path: Path, written: str) -> None:
    class Copying(Chooser):
        def alternatives(self, request: ProposalRequest) -> tuple[Proposal, ...]:
            own = (Proposal(written, "first"),) if request.ref == StateRef(3, 2) else ()
            return (*super().alternatives(request), *own)

    with pytest.raises(BranchError, match=r"the expert's own action 'press 0'.*\(trajectory 3, step 2\)"):
        collect(tmp_path, Copying())


def test_without_a_proposer_workers_choose_where_nothing_is_recorded(tmp_path: Path) -> None:
    experts = [expert(f"game {number}", 6, listed=None) for number in range(4)]
    result = open_collection(tmp_path / "unlisted", trajectories=experts, k=LISTED).run(quiet=True)
    listed = [expert(f"game {number}", 6) for number in range(4)]
    open_collection(tmp_path / "listed", trajectories=listed, k=LISTED).run(quiet=True)
    assert read_branches(tmp_path / "unlisted") == read_branches(tmp_path / "listed")
    assert (result.branches, result.failed) == (24 * (LISTED + 1), 0)
