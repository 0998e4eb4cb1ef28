"""Collects an expert file: proposes alternatives, skips known outcomes, executes the rest on workers, keeps it all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, canonical_form, nondeterministic
from verl_ee.experience.branching.protocol import StateResult, Usage, WorkUnit
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.collecting.alternative_shares import AlternativeShares
from verl_ee.experience.collecting.collection_folder import CollectionFolder
from verl_ee.experience.collecting.failures import Failures
from verl_ee.experience.collecting.plan import CollectionPlan, split_work
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.collecting.proposal_queue import ProposalQueue
from verl_ee.experience.collecting.result_tables import result_tables
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.cost import Cost
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.progress import progress_bar
from verl_ee.experience.proposers import Proposal, Proposer
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Transition, transition_key, write_store

if TYPE_CHECKING:
    from verl_ee.experience.branching.workers import WorkerPool

FLUSH_SECONDS = 1.0
"""Time between two writes of new outcomes: a killed run loses at most what came back in it."""
POLL_SECONDS = 0.05
"""Time between two looks at proposals while workers are busy."""
PIECES_PER_WORKER = 2
"""Pieces of work that wait for each worker before the proposer is given more states."""


@dataclass
class CollectionResult:
    """The numbers of a collection.

    Attributes:
        states: states of the expert file.
        transitions: distinct transitions that the branches point to.
        branches: alternatives and expert actions with an outcome.
        reused: transitions that did not have to be executed.
        lost: states that could not be reached.
        failed: actions that could not be executed.
        faults: how often each kind of fault occurred, those that a second attempt repaired included.
        restore: the method to restore a state, empty if nothing had to be executed.
        cost: everything that was spent.
        start_seconds: part of the seconds, until the workers were ready.
        trial_usage: part of the steps and resets, for the choice of the method to restore a state.
        alternatives: counts of alternatives, and of the responses that they come from.
    """

    states: int = 0
    transitions: int = 0
    branches: int = 0
    reused: int = 0
    lost: int = 0
    failed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    restore: str = ""
    cost: Cost = field(default_factory=Cost)
    start_seconds: float = 0.0
    trial_usage: Usage = field(default_factory=Usage)
    alternatives: AlternativeCounts = field(default_factory=AlternativeCounts)


class Collection:
    """One expert file, collected into one folder.

    Attributes:
        plan: what is executed.
        closed: whether the folder holds the finished result already.
        result: the numbers of `run`, also where it raises: those of alternatives are then of the states decided so far.
    """

    def __init__(
        self,
        folder: Path,
        trajectories: Sequence[ExpertTrajectory],
        environment: EnvironmentConfig,
        config: CollectConfig,
        provenance: Mapping[str, str],
    ) -> None:
        """Open a folder, new or left by a killed run.

        Args:
            folder: where the result goes.
            trajectories: trajectories of the expert file.
            environment: the environment that they were recorded in.
            config: how they are branched.
            provenance: identifies the inputs; a folder with another one is refused.

        Raises:
            StoreError: if the folder holds another collection, or something in it is broken.
        """
        self._folder, self._environment, self._config = CollectionFolder(folder), environment, config
        self._provenance, self._canonical = dict(provenance), canonical_form(environment.id)
        run = self._open()
        self._shared = config.cache is not None
        self._cache = TransitionCache(cache_folder(self._folder, config), self._canonical)
        self._journal = ProposalJournal(self._folder.proposals)
        owner = run if nondeterministic(environment.id) else ""
        self.plan = CollectionPlan(trajectories, config, self._cache, self._journal, owner)
        self._failures = Failures(config, environment.id, self.plan.states)
        self._shares = AlternativeShares(config)
        self._flushed = time.monotonic()
        self._usage = self._journal.usage
        self.result = CollectionResult(states=self.plan.states)

    def run(
        self, proposer: Proposer | None = None, history_length: int | None = 0, quiet: bool = False
    ) -> CollectionResult:
        """Execute the actions whose outcome is not known, write both tables, and return the numbers.

        Args:
            proposer: source of alternatives, where they are not taken from the environment's list.
            history_length: past turns in the states that the proposer sees.
            quiet: show no progress bar.

        Raises:
            BranchError: if more states or actions failed than the config allows, or fewer alternatives were found.
            EnvError: if the environment cannot be made, or offers no method to restore a state.
        """
        from verl_ee.experience.branching.workers import WorkerPool

        began = time.monotonic()
        queue = ProposalQueue(self.plan, self._shares, proposer, history_length)
        units, result = self.plan.work_units(queue.decided), self.result
        try:
            if units or queue.active:
                pool = WorkerPool(self._environment, self._config, self.plan.trajectories[0], self.plan.states)
                result.restore, result.trial_usage = pool.restore, pool.trial_usage
                result.start_seconds = time.monotonic() - began
                self._usage += pool.trial_usage
                try:
                    self._execute(pool, units, queue, quiet)
                finally:
                    pool.close()
                    queue.close()
                    self._flush()
                    self._failures.count(pool.worker_losses)
            self._close()
        finally:
            self._count(queue, time.monotonic() - began)
        return result

    def _open(self) -> str:
        """Set `closed`, and return the id of an unfinished collection."""
        sharing_key = self._config.key("cache")
        self.closed = self._folder.is_closed(self._provenance, sharing_key)
        if self.closed:
            # A kill between the tables and the end of their making leaves the parts behind.
            self._folder.remove_parts()
            return ""
        return self._folder.open_run(self._provenance, sharing_key)

    def _execute(self, pool: WorkerPool, units: Sequence[WorkUnit], queue: ProposalQueue, quiet: bool) -> None:
        """Keep workers and proposer busy until every state has its result."""
        pieces = deque(self._pieces(units, pool))
        left = sum(len(unit.requests) for unit in units) + queue.states
        with progress_bar(self.plan.states, "collect", "state", self.plan.states - left, disable=quiet) as bar:
            while pieces or pool.busy or queue.active:
                if len(pieces) < PIECES_PER_WORKER * pool.size:
                    queue.submit()
                idle = not pieces and not pool.busy
                if idle:
                    self._flush()
                proposed = self.plan.work_units(queue.finished_trajectories(wait_for_one=idle))
                pieces.extend(self._pieces(proposed, pool))
                while pieces and pool.free:
                    pool.submit(pieces.popleft())
                if not pieces and not pool.busy:
                    continue
                for result in pool.results(POLL_SECONDS if queue.active else FLUSH_SECONDS):
                    self._usage += result.usage
                    self._take(result)
                    bar.update(1)
                pieces.extend(pool.unfinished_units)
                pool.unfinished_units.clear()
                if time.monotonic() - self._flushed > FLUSH_SECONDS:
                    self._flush()
                    bar.set_postfix(faults=self._failures.kinds.total(), refresh=False)
                self._failures.check(self.plan.states * (self._config.k + 1))

    def _pieces(self, units: Sequence[WorkUnit], pool: WorkerPool) -> list[WorkUnit]:
        return split_work(units, pool.restore, pool.size, self._config.k)

    def _take(self, result: StateResult) -> None:
        """Keep the outcomes and the faults of one state."""
        self._failures.count(result.faults)
        if result.lost:
            self._failures.add_lost_state(result.ref, result.faults[-1])
            return
        proposals = [Proposal(action, self._config.alternatives) for action in result.alternatives]
        self.plan.record(result.ref, DecidedState(tuple(proposals), result.usage))
        expert_outcomes = [] if result.expert_outcome is None else [result.expert_outcome]
        outcomes = [*result.outcomes, *expert_outcomes]
        self._cache.add(self._transitions(result.ref, outcomes))
        self._failures.add_failed_actions(result.ref, result.faults)
        for outcome in outcomes:
            self._failures.add_conflict(result.ref, outcome.action, self.plan.conflict(result.ref, outcome.action))

    def _transitions(self, ref: StateRef, outcomes: Iterable[Outcome]) -> list[Transition]:
        trajectory, state = self.plan.trajectories[ref.trajectory], self.plan.key(ref)
        prefix = tuple(step.action for step in trajectory.steps[: ref.step])
        return [
            Transition(transition_key(state, self._canonical(outcome.action)), state, trajectory.task, prefix, outcome)
            for outcome in outcomes
        ]

    def _flush(self) -> None:
        # In this order: the usage on disk is that of the transitions on disk.
        self._cache.flush()
        self._journal.flush()
        self._flushed = time.monotonic()

    def _close(self) -> None:
        """Write the tables of everything that has an outcome, and remove the parts."""
        lost = self._failures.lost
        for ref in self.plan.refs():
            if ref not in lost:
                for action in self.plan.missing_actions(ref):
                    self._failures.add_conflict(ref, action, self.plan.conflict(ref, action))
                    self._failures.add_unshared_action(ref, action)
        tables = result_tables(self.plan, self._cache, lost.keys())
        self.result.transitions, self.result.branches = len(tables.transitions), len(tables.branches)
        if self._shared:
            self.result.reused = len(tables.transitions.keys() & self._cache.known_at_start)
        self._failures.check(tables.actions)
        self._shares.check(self._alternatives)
        write_store(self._folder.path, tables.transitions.values(), tables.branches, self._provenance)
        self._folder.remove_parts()

    @cached_property
    def _alternatives(self) -> AlternativeCounts:
        """Counts over the decided states that are not lost; read it only when no action is executed any more."""
        decided = self.plan.proposals.keys() - self._failures.lost.keys()
        return sum(map(self.plan.counts, decided), AlternativeCounts())

    def _count(self, queue: ProposalQueue, seconds: float) -> None:
        """Put everything into the result that is known at the end, whether the collection is whole or not."""
        result, failures = self.result, self._failures
        result.lost, result.failed = len(failures.lost), len(failures.failed)
        result.faults, result.alternatives = dict(sorted(failures.kinds.items())), self._alternatives
        result.cost = Cost(
            env_steps=self._usage.env_steps,
            resets=self._usage.resets,
            prompt_tokens=queue.prompt_tokens,
            completion_tokens=queue.completion_tokens,
            seconds=round(seconds, 3),
            bytes=self._folder.bytes,
        )


def cache_folder(folder: CollectionFolder, config: CollectConfig) -> Path:
    """Return where a collection keeps its transitions: in the folder that it shares, or in its own."""
    return folder.transitions if config.cache is None else Path(config.cache).expanduser()
