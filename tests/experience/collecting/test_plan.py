"""The plan: every open state once, nothing that is known, in pieces that keep all workers busy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.games import SavedGame, expert, shown, whole

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.protocol import RESTORE_METHODS, StateRequest, Usage, WorkUnit, env_steps_of
from verl_ee.experience.branching.restore import SnapshotRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.collecting.plan import CollectionPlan, split_work
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Transition, transition_key

CONFIG = CollectConfig(k=3)


class Ledger:
    """A plan, with its transition cache and its journal."""

    def __init__(self, folder: Path, trajectories: list[ExpertTrajectory], config: CollectConfig = CONFIG) -> None:
        self.cache, self.journal = (
            TransitionCache(folder / "transitions", str.strip),
            ProposalJournal(folder / "proposals"),
        )
        self.plan = CollectionPlan(trajectories, config, self.cache, self.journal)
        for ref in self.plan.refs():
            self.plan.decide(ref)

    def execute(self, ref: StateRef, action: str, done: bool = False) -> None:
        """Make an outcome known."""
        trajectory, state = self.plan.trajectories[ref.trajectory], self.plan.key(ref)
        path = tuple(step.action for step in trajectory.steps[: ref.step])
        outcome = Outcome(action, shown(trajectory.task, trajectory.seed, [*path, action.strip()]), True, done)
        self.cache.add([Transition(transition_key(state, action.strip()), state, "", path, outcome)])

    def units(self) -> list[WorkUnit]:
        return self.plan.work_units(range(len(self.plan.trajectories)))


def open_actions(unit: WorkUnit) -> list[tuple[int, str]]:
    """Step and action of everything that a unit executes for itself."""
    actions = []
    for request in unit.requests:
        own = [unit.trajectory.steps[request.step].action] if request.include_expert else []
        fresh = [action for action in request.alternatives or () if action.strip() not in request.known]
        actions += [(request.step, action) for action in own + fresh]
    return actions


def test_everything_is_requested_at_first_and_chosen_as_a_worker_would_choose(tmp_path: Path) -> None:
    trajectories = [expert("game 0", 4), expert("game 1", 6)]
    ledger = Ledger(tmp_path, trajectories)
    units = ledger.units()
    assert [(unit.trajectory_index, unit.trajectory) for unit in units] == list(enumerate(trajectories))
    assert [[request.step for request in unit.requests] for unit in units] == [list(range(4)), list(range(6))]
    for unit in units:
        results = list(branch(EnvironmentSession(SavedGame), SnapshotRestore(), whole(unit.trajectory), CONFIG))
        assert [request.alternatives for request in unit.requests] == [result.alternatives for result in results]
        assert all(request.include_expert and not request.known for request in unit.requests)


def test_what_is_known_is_not_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, [expert(length=3)])
    refs = list(ledger.plan.refs())
    first = [proposal.action for proposal in ledger.plan.proposals[refs[0]]]
    for action in (*first, "press 0"):
        ledger.execute(refs[0], action)
    second = [proposal.action for proposal in ledger.plan.proposals[refs[1]]]
    ledger.execute(refs[1], f"  {second[1]}\n")
    ledger.execute(refs[2], "press 0")
    assert ledger.plan.missing_actions(refs[0]) == []
    (unit,) = ledger.units()
    assert [(request.step, request.include_expert) for request in unit.requests] == [(1, True), (2, False)]
    third = [proposal.action for proposal in ledger.plan.proposals[refs[2]]]
    requested = [(1, "press 0"), (1, second[0]), (1, second[2]), *((2, action) for action in third)]
    assert open_actions(unit) == requested


def test_an_action_with_two_outcomes_is_not_asked_for_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, [expert(length=2)])
    refs = list(ledger.plan.refs())
    chosen = ledger.plan.proposals[refs[0]][0].action
    for action in (chosen, "press 0"):
        ledger.execute(refs[0], action)
        ledger.execute(refs[0], f" {action}", done=True)
    ledger.execute(refs[1], "press 0", done=True)
    (unit,) = ledger.units()
    assert chosen not in [action for step, action in open_actions(unit) if step == 0]
    assert [(request.step, request.include_expert) for request in unit.requests] == [(0, False), (1, False)]
    assert set(ledger.plan.missing_actions(refs[0])) >= {chosen, "press 0"}
    for action in (chosen, "press 0"):
        assert "done was False and is True" in str(ledger.plan.conflict(refs[0], action))
    assert ledger.plan.conflict(refs[1], "press 0") is None


def test_the_experts_outcome_is_not_asked_for_where_it_is_not_wanted(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"include_expert_transition": False})
    (unit,) = Ledger(tmp_path, [expert()], config).units()
    assert not any(request.include_expert for request in unit.requests)
    assert all(len(request.alternatives or ()) == 3 for request in unit.requests)


def test_a_state_that_two_trajectories_come_by_is_asked_for_once(tmp_path: Path) -> None:
    apart = expert(length=5, presses=(0, 0, 1))
    trajectories = [expert(length=5), apart, expert(length=5), expert(length=5, seed=8)]
    ledger = Ledger(tmp_path, trajectories, CollectConfig(k=100))
    units = ledger.units()
    assert [unit.trajectory_index for unit in units] == [0, 1, 3]
    # Up to where the experts part, all that the second one wants has been asked for with the first.
    assert [request.step for request in units[1].requests] == [3, 4]
    requested = Counter(
        (ledger.plan.key(StateRef(unit.trajectory_index, step)), action)
        for unit in units
        for step, action in open_actions(unit)
    )
    assert set(requested.values()) == {1}
    wanted = {
        (ledger.plan.key(ref), action) for ref in ledger.plan.refs() for action in ledger.plan.missing_actions(ref)
    }
    assert set(requested) == wanted


def test_a_state_whose_list_is_not_recorded_is_left_to_the_worker(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, [expert(listed=None)])
    (unit,) = ledger.units()
    assert unit.requests == tuple(StateRequest(step) for step in range(6))
    assert ledger.plan.proposals == {}


def test_an_answered_state_is_noted_with_what_it_took(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, [expert(length=2)])
    ref = StateRef(0, 1)
    proposals = ledger.plan.proposals[ref]
    for action in ledger.plan.missing_actions(ref):
        ledger.execute(ref, action)
    ledger.plan.record(ref, DecidedState(proposals, Usage(5, 1), responses=4, without_action=1))
    ledger.plan.record(ref, DecidedState((Proposal("jam", "another"),), Usage(2, 0)))
    ledger.cache.flush()
    ledger.journal.flush()
    again = Ledger(tmp_path, [expert(length=2)])
    assert again.journal.decided == {StateRef(0, 1): DecidedState(proposals, Usage(7, 1), 4, 1)}
    assert again.plan.proposals[ref] == proposals
    assert [request.step for unit in again.units() for request in unit.requests] == [0]


def test_what_was_proposed_is_kept_before_it_is_executed(tmp_path: Path) -> None:
    # Both come by the same states, so that one unit executes what both want.
    twins = [expert(length=2, listed=None), expert(length=2, listed=None)]
    ledger = Ledger(tmp_path, twins)
    for ref in ledger.plan.refs():
        ledger.plan.record(ref, DecidedState((Proposal("press 1", "policy", "step 0", str(ref)),)))
    assert [unit.trajectory_index for unit in ledger.units()] == [0]
    ledger.journal.flush()
    again = Ledger(tmp_path, twins)
    assert again.plan.proposals == ledger.plan.proposals
    assert len(again.plan.proposals) == 4
    assert [(step, action) for unit in again.units() for step, action in open_actions(unit)] == [
        (step, action) for step in range(2) for action in ("press 0", "press 1")
    ]


UNITS = {
    "equal": [10] * 8,
    "one": [40],
    "one-long": [2, 2, 60, 2],
    "growing": list(range(1, 20)),
    "short": [1, 1, 1],
}


@pytest.mark.parametrize("restore", RESTORE_METHODS)
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("lengths", UNITS.values(), ids=UNITS)
def test_pieces_hold_every_ask_once_and_none_is_too_long(restore: str, workers: int, lengths: list[int]) -> None:
    units = [whole(expert(f"game {index}", length), index) for index, length in enumerate(lengths)]
    pieces = split_work(units, restore, workers, 3)
    for unit in units:
        mine = sorted(
            (piece for piece in pieces if piece.trajectory_index == unit.trajectory_index),
            key=lambda piece: piece.requests[0].step,
        )
        assert tuple(request for piece in mine for request in piece.requests) == unit.requests
        assert all(piece.trajectory == unit.trajectory for piece in mine)
    costs = [env_steps_of(piece, restore, 3) for piece in pieces]
    share = sum(env_steps_of(unit, restore, 3) for unit in units) / workers
    deepest = max(env_steps_of(WorkUnit(0, unit.trajectory, unit.requests[-1:]), restore, 3) for unit in units)
    assert max(costs) <= max(1.5 * share, 2 * deepest) or workers == 1
    # Given out one after the other, to whoever is free, no worker has much more to do than another.
    busy = [0] * workers
    for cost in costs:
        busy[busy.index(min(busy))] += cost
    assert max(busy) <= 1.5 * sum(costs) / workers + 2 * deepest


def test_nothing_is_cut_for_a_worker_that_is_alone() -> None:
    units = [whole(expert(length=50), 4)]
    assert split_work(units, "snapshot", 1, 8) == units
    assert split_work([], "replay", 5, 8) == []


@pytest.mark.parametrize("restore", ["snapshot", "fork"])
def test_a_walk_is_not_cut_more_often_than_workers_need(restore: str) -> None:
    units = [whole(expert(f"game {index}", 20), index) for index in range(12)]
    assert len(split_work(units, restore, 4, 8)) == len(units)
    pieces = split_work(units[:1], restore, 4, 8)
    assert len(pieces) == 4
    again = sum(env_steps_of(piece, restore, 8) for piece in pieces) - env_steps_of(units[0], restore, 8)
    assert again <= sum(piece.requests[0].step for piece in pieces)
