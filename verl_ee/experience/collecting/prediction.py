"""The cost of a collection before it is done: counted where it can be, measured on a small sample where not."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, canonical_form
from verl_ee.experience.branching.protocol import WorkUnit, env_steps_of
from verl_ee.experience.collecting.collection import Collection, CollectionResult, cache_folder
from verl_ee.experience.collecting.collection_folder import CollectionFolder
from verl_ee.experience.collecting.plan import CollectionPlan, split_work
from verl_ee.experience.collecting.proposal_journal import ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.cost import Cost
from verl_ee.experience.proposers import Proposer

SHARE, LEAST, MOST = 0.1, 64, 2000
"""States of the sample: a tenth of all, within these bounds."""


@dataclass(frozen=True)
class Prediction:
    """The expected cost of a collection.

    Attributes:
        cost: cost of the whole collection.
        exact: whether `env_steps` is counted; else it assumes K alternatives in every state whose actions are only
            listed when it is reached, or proposed.
        restore: how states are reached.
        workers: number of workers that share the work.
        states: states that are left to do.
        sampled: states that were collected to find out, and thrown away.
    """

    cost: Cost
    exact: bool
    restore: str
    workers: int
    states: int
    sampled: int


def predict(
    folder: Path,
    trajectories: Sequence[ExpertTrajectory],
    environment: EnvironmentConfig,
    config: CollectConfig,
    proposer: Proposer | None = None,
    history_length: int | None = 0,
) -> Prediction:
    """Predict the cost of a collection; nothing is written to its folder.

    Args:
        folder: where it would go; what a killed run has left there counts as done.
        trajectories: trajectories of the expert file.
        environment: the environment that they were recorded in.
        config: how they would be branched.
        proposer: source of alternatives, where they are not taken from the environment's list.
        history_length: past turns in the states that the proposer sees.

    Raises:
        EnvError: if the environment cannot be made, or offers no method to restore a state.
        BranchError: if too much of the sample failed.
        StoreError: if what is there cannot be read.
    """
    from verl_ee.experience.branching.workers import worker_count

    plan = _plan(CollectionFolder(folder), trajectories, config)
    decided = [plan.decide(ref) for ref in plan.refs()]
    exact = all(decided)
    units = plan.work_units(range(len(trajectories)))
    states = sum(len(unit.requests) for unit in units)
    workers = worker_count(config, plan.states)
    if not units:
        return Prediction(Cost(), exact, "", workers, states=0, sampled=0)
    sample = [trajectories[index] for index in _sample(units)]
    measured = _measure(sample, environment, config, proposer, history_length)
    cost = _scaled(measured, _env_steps(units, measured.restore, workers, config.k), states)
    return Prediction(cost, exact, measured.restore, workers, states, measured.states)


def _plan(folder: CollectionFolder, trajectories: Sequence[ExpertTrajectory], config: CollectConfig) -> CollectionPlan:
    """Return the plan of a collection that would go on with what its folder holds."""
    if not folder.has_result:
        # Refuses parts of another version, which would look as if nothing had been done.
        folder.read_run()
    cache = TransitionCache(cache_folder(folder, config), canonical_form(trajectories[0].environment))
    return CollectionPlan(trajectories, config, cache, ProposalJournal(folder.proposals))


def _sample(units: Sequence[WorkUnit]) -> list[int]:
    """Return indices of trajectories from all over the file that have about as many states as the sample should."""
    states = sum(len(unit.requests) for unit in units)
    wanted = min(max(LEAST, round(SHARE * states)), MOST)
    count = max(1, min(len(units), round(len(units) * wanted / states)))
    return [units[number * len(units) // count].trajectory_index for number in range(count)]


def _measure(
    sample: Sequence[ExpertTrajectory],
    environment: EnvironmentConfig,
    config: CollectConfig,
    proposer: Proposer | None,
    history_length: int | None,
) -> CollectionResult:
    """Collect a sample into a folder that is thrown away, whatever fails, and without a shared cache."""
    unlimited = {"max_mismatch": 1.0, "max_failed": 1.0, "min_own": 0.0, "min_filled": 0.0}
    alone = config.model_copy(update={"cache": None, **unlimited})
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as temporary:
        collection = Collection(Path(temporary), sample, environment, alone, {})
        return collection.run(proposer, history_length, quiet=True)


def _scaled(measured: CollectionResult, env_steps: int, states: int) -> Cost:
    """Return the cost of the whole collection.

    Resets and seconds grow with the environment steps, tokens and bytes with the states. The workers start once, and
    once they choose the method to restore a state.

    Args:
        measured: the sample.
        env_steps: environment steps of the whole, without those of that choice.
        states: states of the whole.
    """
    trial = measured.trial_usage
    by_step = _ratio(env_steps, measured.cost.env_steps - trial.env_steps)
    by_state = _ratio(states, measured.states)
    seconds = measured.start_seconds + (measured.cost.seconds - measured.start_seconds) * by_step
    resets = round((measured.cost.resets - trial.resets) * by_step) + trial.resets
    env_steps += trial.env_steps
    return replace(measured.cost.scaled(by_state), env_steps=env_steps, resets=resets, seconds=seconds)


def _env_steps(units: Sequence[WorkUnit], restore: str, workers: int, k: int) -> int:
    return sum(env_steps_of(piece, restore, k) for piece in split_work(units, restore, workers, k))


def _ratio(whole: int, part: int) -> float:
    return whole / part if part else 0.0
