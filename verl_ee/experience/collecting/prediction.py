"""What collecting would take, before it is done: counted where it can be, measured on a small sample where not."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import WorkUnit, env_steps_of
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.collecting.plan import CollectionPlan, split_work
from verl_ee.experience.collecting.proposal_journal import ProposalJournal
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.cost import Cost
from verl_ee.experience.proposers import Proposer

SHARE, LEAST, MOST = 0.1, 64, 2000
"""States of the sample: a tenth of all, within these bounds."""


@dataclass(frozen=True)
class Prediction:
    """What is to be expected.

    Attributes:
        cost: of the whole.
        exact: whether `env_steps` is counted; else it takes K alternatives in every state whose actions are only
            listed when it is reached, or proposed.
        restore: how states are reached.
        workers: that share the work.
        states: that are left to do.
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
    history_length: int = 0,
) -> Prediction:
    """Predict the cost of a collection; nothing is written to its folder.

    Args:
        folder: where it would go; what a killed run has left there counts as done.
        trajectories: of the expert file.
        environment: the environment that they were recorded in.
        config: how they would be branched.
        proposer: of alternatives, where they are not taken from the environment's list.
        history_length: past turns in the states that the proposer is shown.

    Raises:
        EnvironmentFault: if the environment cannot be made, or has no way back to a state.
        BranchError: if too much of the sample failed.
        StoreError: if what is there cannot be read.
    """
    from verl_ee.experience.branching.workers import worker_count

    facts = TransitionCache(
        folder / "parts" / "transitions" if config.cache is None else Path(config.cache).expanduser()
    )
    plan = CollectionPlan(trajectories, config, facts, ProposalJournal(folder / "parts" / "proposals"))
    exact = all([plan.decide(ref) for ref in plan.refs()])
    units = [unit for index in range(len(trajectories)) if (unit := plan.unit(index)) is not None]
    states = sum(len(unit.requests) for unit in units)
    workers = worker_count(config, plan.states)
    if not units:
        return Prediction(Cost(), exact, "", workers, 0, 0)
    chosen = _sample([unit.index for unit in units], units)
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as temporary:
        alone = config.model_copy(update={"cache": None, "max_mismatch": 1.0, "max_failed": 1.0})
        sample = [trajectories[index] for index in chosen]
        measured = Collection(Path(temporary), sample, environment, alone, {}).run(proposer, history_length, quiet=True)
    steps = _steps(units, measured.restore, workers, config.k)
    by_step = _ratio(steps, measured.cost.env_steps)
    by_state = _ratio(states, measured.states)
    cost = replace(measured.cost.scaled(by_state), env_steps=steps, resets=round(measured.cost.resets * by_step))
    seconds = measured.start_seconds + (measured.cost.seconds - measured.start_seconds) * by_step
    return Prediction(replace(cost, seconds=seconds), exact, measured.restore, workers, states, measured.states)


def _sample(indices: Sequence[int], units: Sequence[WorkUnit]) -> list[int]:
    """Return trajectories from all over the file that have about as many states as the sample should."""
    states = sum(len(unit.requests) for unit in units)
    wanted = min(max(LEAST, round(SHARE * states)), MOST)
    count = max(1, min(len(indices), round(len(indices) * wanted / states)))
    return [indices[position * len(indices) // count] for position in range(count)]


def _steps(units: Sequence[WorkUnit], restore: str, workers: int, k: int) -> int:
    return sum(env_steps_of(piece, restore, k) for piece in split_work(units, restore, workers, k))


def _ratio(whole: int, part: int) -> float:
    return whole / part if part else 0.0
