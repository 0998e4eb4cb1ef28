"""Collects an expert file: proposes, skips what is known, executes the rest on workers, keeps all of it at once.

<folder>/
    run.json                               which collection this is
    parts/facts, parts/answers             what has been done so far; a killed run goes on from here
    transitions.parquet, branches.parquet  the result, sorted; the parts are gone then
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, nondeterministic
from verl_ee.errors import BranchError, StoreError
from verl_ee.experience.branching.protocol import Fault, Outcome, StateResult, Usage, WorkUnit
from verl_ee.experience.collecting.plan import CollectionPlan, split_work
from verl_ee.experience.collecting.proposal_journal import ProposalJournal
from verl_ee.experience.collecting.proposal_queue import ProposalQueue
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.cost import Cost
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.proposers import EXPERT, Proposal, Proposer
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import (
    BRANCHES,
    TRANSITIONS,
    Branch,
    Transition,
    read_provenance,
    transition_key,
    write_store,
)
from verl_ee.prompts.actions import canonical

if TYPE_CHECKING:
    from verl_ee.experience.branching.workers import WorkerPool

SCHEMA = 1
BAR_SECONDS = 5.0
"""Between two updates of a progress bar: Ray prints each as a line of its own."""
FLUSH_SECONDS = 1.0
"""Between two writes of what has come back: what a killed run loses at most."""
POLL_SECONDS = 0.05
"""Between two looks at proposals while workers are busy."""


@dataclass
class CollectionResult:
    """What collecting gave.

    Attributes:
        states: states of the expert file.
        transitions: distinct facts that the branches point to.
        branches: alternatives and expert actions with an outcome.
        reused: transitions that did not have to be executed.
        lost: states that could not be reached.
        failed: actions that could not be executed.
        faults: how often each kind of fault occurred, those made good by a second attempt included.
        restore: the way back to a state, empty if nothing had to be executed.
        cost: what was spent.
        start_seconds: part of the seconds, until the workers were ready.
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


class Collection:
    """One expert file, collected into one folder.

    Attributes:
        plan: what is executed.
        closed: whether the folder holds the finished result already.
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
            trajectories: of the expert file.
            environment: the environment that they were recorded in.
            config: how they are branched.
            provenance: identifies the inputs; a folder with another one is refused.

        Raises:
            StoreError: if the folder holds another collection, or something in it is broken.
        """
        self.folder, self._environment, self._config = folder, environment, config
        self._provenance = dict(provenance)
        sharing = config.key("cache")
        self.closed = _is_closed(folder, self._provenance, sharing)
        if self.closed:
            # A kill between the tables and the end of their making leaves these behind.
            shutil.rmtree(folder / "parts", ignore_errors=True)
        run = _open_run(folder, self._provenance, sharing)
        shared = None if config.cache is None else Path(config.cache).expanduser()
        self._cache = TransitionCache(shared or folder / "parts" / "transitions")
        self._journal = ProposalJournal(folder / "parts" / "proposals")
        self._shared = shared is not None
        owner = run if nondeterministic(environment.id) else ""
        self.plan = CollectionPlan(trajectories, config, self._cache, self._journal, owner)
        self._lost: dict[StateRef, Fault] = {}
        self._failed: dict[tuple[StateRef, str], Fault] = {}
        self._faults: Counter[str] = Counter()

    def run(self, proposer: Proposer | None = None, history_length: int = 0, quiet: bool = False) -> CollectionResult:
        """Execute what is not known, write both tables, and return what was done.

        Args:
            proposer: of alternatives, where they are not taken from the environment's list.
            history_length: past turns in the states that the proposer is shown.
            quiet: show no progress bar.

        Raises:
            BranchError: if more states or actions failed than the config allows.
            EnvironmentFault: if the environment cannot be made, or has no way back to a state.
            StoreError: if one transition had two outcomes.
        """
        from verl_ee.experience.branching.workers import WorkerPool

        began = time.monotonic()
        spent = sum((done.usage for done in self._journal.done.values()), Usage())
        asker = ProposalQueue(self.plan, proposer, history_length)
        units = self._units(asker.decided)
        restore, start = "", 0.0
        if units or asker.active:
            pool = WorkerPool(self._environment, self._config, self.plan.trajectories[0], self.plan.states)
            restore, spent, start = pool.restore, spent + pool.trial, time.monotonic() - began
            try:
                spent += self._execute(pool, units, asker, quiet)
            finally:
                pool.close()
                asker.close()
                self._flush()
                self._faults.update(fault.kind for fault in pool.losses)
        result = self._close()
        size = sum((self.folder / name).stat().st_size for name in (TRANSITIONS, BRANCHES))
        result.restore, result.start_seconds = restore, start
        result.cost = Cost(spent.env_steps, spent.resets, *asker.tokens, round(time.monotonic() - began, 3), size)
        return result

    def _units(self, indices: Iterable[int]) -> list[WorkUnit]:
        return [unit for index in indices if (unit := self.plan.unit(index)) is not None]

    def _execute(self, pool: WorkerPool, units: Sequence[WorkUnit], asker: ProposalQueue, quiet: bool) -> Usage:
        """Keep workers and proposer busy until everything is answered, and return what was spent."""
        usage, flushed = Usage(), time.monotonic()
        ready = deque(split_work(units, pool.restore, pool.size, self._config.k))
        left = sum(len(unit.requests) for unit in units) + asker.states
        with tqdm(
            total=self.plan.states,
            initial=self.plan.states - left,
            desc="collect",
            unit="state",
            mininterval=BAR_SECONDS,
            disable=quiet,
        ) as bar:
            while ready or pool.busy or asker.active:
                if len(ready) < 2 * pool.size:
                    asker.ask()
                idle = not ready and not pool.busy
                if idle:
                    self._flush()
                proposed = self._units(asker.finished(wait_for_one=idle))
                ready.extend(split_work(proposed, pool.restore, pool.size, self._config.k))
                while ready and pool.free:
                    pool.submit(ready.popleft())
                if not pool.busy and not ready:
                    continue
                for answer in pool.answers(POLL_SECONDS if asker.active else FLUSH_SECONDS):
                    usage += answer.usage
                    self._take(answer)
                    bar.update(1)
                ready.extend(pool.returned)
                pool.returned.clear()
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self._flush()
                    bar.set_postfix(faults=sum(self._faults.values()), refresh=False)
                    flushed = time.monotonic()
                self._check_budget(self.plan.states * (self._config.k + 1))
        return usage

    def _take(self, answer: StateResult) -> None:
        ref = StateRef(answer.index, answer.step)
        self._faults.update(fault.kind for fault in answer.faults)
        if answer.lost:
            self._lost[ref] = answer.faults[-1]
            return
        self.plan.note(ref, [Proposal(action, self._config.alternatives) for action in answer.actions], answer.usage)
        executed = [*answer.outcomes, *([answer.expert] if answer.expert else [])]
        self._cache.add(self._transition(ref, outcome) for outcome in executed)
        missing = {fault.action: fault for fault in answer.faults if fault.action is not None}
        self._failed.update({(ref, action): fault for action, fault in missing.items()})

    def _transition(self, ref: StateRef, outcome: Outcome) -> Transition:
        trajectory, state = self.plan.trajectories[ref.trajectory], self.plan.key(ref)
        prefix = tuple(step.action for step in trajectory.steps[: ref.step])
        return Transition(
            transition_key(state, outcome.action),
            state,
            trajectory.task,
            prefix,
            outcome.action,
            outcome.observation,
            outcome.valid,
            outcome.done,
        )

    def _flush(self) -> None:
        # In this order: what was spent on disk is what facts on disk took.
        self._cache.flush()
        self._journal.flush()

    def _check_budget(self, actions: int) -> None:
        budgets = (
            ("expert states could not be reached again", self._lost, self.plan.states, "max_mismatch"),
            ("actions could not be executed", self._failed, actions, "max_failed"),
        )
        for what, faults, total, key in budgets:
            allowed = getattr(self._config, key)
            if len(faults) > allowed * total:
                shown = "\n  ".join(
                    str(fault) for _, fault in sorted(faults.items(), key=lambda item: str(item[1]))[:3]
                )
                raise BranchError(
                    f"{len(faults)} of {total} {what}, more than {self._config.key(key)}={allowed:g} allows. "
                    "The expert file may not describe this environment, or the environment is not deterministic: try "
                    f"`verl-ee envs check {self._environment.id}`. What has been executed is kept. First:\n  {shown}"
                )

    def _close(self) -> CollectionResult:
        """Write the tables of everything that has an outcome, and take the parts away."""
        facts: dict[str, Transition] = {}
        branches, actions = list[Branch](), 0
        for ref in self.plan.refs():
            if ref not in self._lost:
                for action in self.plan.missing(ref):
                    message = "another trajectory comes by this state, and the action could not be executed there"
                    fault = Fault(ref.trajectory, ref.step, "shared", message, action)
                    self._failed.setdefault((ref, action), fault)
        for ref in self.plan.refs():
            if ref in self._lost:
                continue
            known = self._cache.known(self.plan.key(ref))
            recorded = self.plan.trajectories[ref.trajectory].steps[ref.step]
            wanted = [Proposal(recorded.action, EXPERT)] if self._config.include_expert_transition else []
            wanted += self.plan.proposals[ref]
            actions += len(wanted)
            for order, proposal in enumerate(wanted):
                fact = known.get(canonical(proposal.action))
                if fact is not None:
                    facts[fact.key] = fact
                    branches.append(_branch(ref, order, proposal, fact.key))
        self._check_budget(actions)
        write_store(self.folder, facts.values(), branches, self._provenance)
        if self._shared:
            self._cache.parts.join()
        shutil.rmtree(self.folder / "parts", ignore_errors=True)
        return CollectionResult(
            states=self.plan.states,
            transitions=len(facts),
            branches=len(branches),
            reused=len(facts.keys() & self._cache.found) if self._shared else 0,
            lost=len(self._lost),
            failed=len(self._failed),
            faults=dict(sorted(self._faults.items())),
        )


def _branch(ref: StateRef, order: int, proposal: Proposal, key: str) -> Branch:
    origin = (proposal.proposer, proposal.policy, proposal.sampling)
    return Branch(ref.trajectory, ref.step, order, *origin, key)


def _is_closed(folder: Path, provenance: Mapping[str, str], sharing: str) -> bool:
    """Return whether a folder holds the finished tables of these inputs.

    Raises:
        StoreError: if it holds those of others.
    """
    if not ((folder / BRANCHES).exists() and (folder / TRANSITIONS).exists()):
        return False
    _check_same(folder, read_provenance(folder), provenance, sharing)
    return True


def _open_run(folder: Path, provenance: Mapping[str, str], sharing: str) -> str:
    """Return the id of the collection in a folder; a new one is given to a new folder."""
    path = folder / "run.json"
    if not path.exists():
        run = uuid.uuid4().hex
        write_json(path, {"schema": SCHEMA, "run": run, "provenance": dict(provenance)})
        return run
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema, run, found = int(content["schema"]), str(content["run"]), dict(content["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Delete {folder} and collect again.") from None
    if schema > SCHEMA:
        raise StoreError(f"{path} has schema {schema}; this verl_ee reads up to {SCHEMA}. Update verl_ee.")
    _check_same(folder, found, provenance, sharing)
    return run


def _check_same(folder: Path, found: Mapping[str, str], expected: Mapping[str, str], sharing: str) -> None:
    for key in sorted({*found, *expected} - {"schema"}):
        if found.get(key) != expected.get(key):
            raise StoreError(
                f"{folder} holds another collection: its {key} is {found.get(key)}, this one's is {expected.get(key)}. "
                f"Choose another folder; {sharing}=FOLDER lets collections share what they execute."
            )
