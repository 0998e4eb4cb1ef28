"""The branch engine beside the published method (reset, replay, act) and beside bare steps: `make bench BENCH=collect`.

Rates are executed (state, action) pairs per second, K alternatives and the expert's own action in each state. Starting
workers is left out on every side; ours ends when both tables are on disk. Every side must see the same outcomes, and
steps are counted by the environment itself.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import ray

from benchmarks import plain, prediction
from benchmarks.environments import TASK, importable, walk
from benchmarks.figures import AtLeast, Exactly, Report, Sample, Thresholds
from benchmarks.plain import Outcome
from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.experience.branching.workers import WorkerPool
from verl_ee.experience.collecting.collection import Collection, CollectionResult
from verl_ee.experience.proposers import listed_proposals
from verl_ee.experience.store import read_branches

STATES, K, COST = 30, 8, 2.0
"""Steps of the trajectory, alternatives per state, milliseconds of CPU time per step and reset."""
GROWTH = (10, 20, 40, 80)
"""Steps of the trajectories that show how the work grows."""
LINEAR = [states * (K + 1) for states in GROWTH]
"""Environment steps where each action of each state is executed once."""
WORKERS = {"snapshot": 1, "fork": 1, "replay": 2}
RATIOS: dict[str, Thresholds] = {
    "snapshot": {"ratio_to_reference": AtLeast(10), "ratio_to_limit": AtLeast(0.8)},
    "fork": {"ratio_to_reference": AtLeast(3)},
    "replay": {"ratio_to_reference": AtLeast(1.5)},
}


class TimedPool(WorkerPool):
    """Notes when its workers are ready, and how long it takes to end them."""

    ready: ClassVar[float]
    closing: ClassVar[float]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        type(self).ready = time.perf_counter()

    def close(self) -> None:
        began = time.perf_counter()
        super().close()
        type(self).closing = time.perf_counter() - began


@dataclass(frozen=True)
class Run:
    """One collection; `seconds` and `env_steps` without starting and ending the workers."""

    result: CollectionResult
    seconds: float
    env_steps: int


class Bench:
    """Measures in a folder for what it writes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, 0
        self._outcomes: dict[int, list[Outcome]] = {}

    def collect(self, restore: str, states: int, cost: float, workers: int, cache: Path | None = None) -> Run:
        """Collect one trajectory with our engine.

        Raises:
            RuntimeError: if it did anything but the whole collection with that method of restoring.
        """
        self._runs += 1
        folder, counted = self._folder / str(self._runs), self._folder / f"{self._runs}.steps"
        environment = EnvironmentConfig(id=importable(restore), kwargs={"milliseconds": cost, "count": str(counted)})
        config = _config(restore=restore, workers=workers, cache=None if cache is None else str(cache))
        recorded = walk(restore, states, K)
        began, TimedPool.ready, TimedPool.closing = time.perf_counter(), 0.0, 0.0
        with patch("verl_ee.experience.branching.workers.WorkerPool", TimedPool):
            result = Collection(folder, [recorded], environment, config, {}).run(quiet=True)
        # Without a pool nothing had to be started, and all of it counts.
        seconds = time.perf_counter() - (TimedPool.ready or began) - TimedPool.closing
        if result.restore and not TimedPool.ready:
            raise RuntimeError("Collection.run took its pool from elsewhere; the start of workers would be counted.")
        steps = 0
        with suppress(FileNotFoundError):  # nothing was executed
            steps = counted.stat().st_size
        if result.branches != states * (K + 1) or result.faults or result.restore not in ("", restore):
            raise RuntimeError(f"{result}: expected {states * (K + 1)} branches by {restore}, and no fault.")
        if result.cost.env_steps != steps:
            raise RuntimeError(f"{result.cost.env_steps} steps were reported, the environment counted {steps}.")
        self._compare(
            [(branch.ref.step, branch.outcome.action, branch.outcome.observation) for branch in read_branches(folder)]
        )
        # The trial of the restore method belongs to the start of the workers.
        return Run(result, seconds, steps - result.trial_usage.env_steps)

    def ours(self, restore: str, cost: float) -> Sample:
        run = self.collect(restore, STATES, cost, WORKERS[restore])
        return Sample(STATES * (K + 1) / run.seconds, {"env_steps": run.env_steps})

    def reference(self, restore: str, cost: float) -> Sample:
        recorded, config = walk(restore, STATES, K), _config()
        choices = []
        for index, step in enumerate(recorded.steps):
            alternatives = listed_proposals(config, recorded, index, step.admissible_actions or ())
            choices.append([step.action, *(proposal.action for proposal in alternatives)])
        arguments = {"task": TASK, "prefix": [step.action for step in recorded.steps], "choices": choices}
        result = plain.run([_request("published", restore, cost, arguments)])
        self._compare(result.outcomes)
        return Sample(STATES * (K + 1) / result.seconds)

    def limit(self, restore: str, cost: float) -> Sample:
        count = WORKERS[restore]
        actions = [step.action for step in walk(restore, STATES * (K + 1) // count, K).steps]
        result = plain.run([_request("stepping", restore, cost, {"actions": actions})] * count)
        return Sample(len(actions) * count / result.seconds)

    def warm(self) -> Sample:
        """Collect what an earlier collection has left in a shared folder."""
        cache = self._folder / "cache"
        if not cache.exists():
            self.collect("snapshot", STATES, COST, 1, cache)
        run = self.collect("snapshot", STATES, COST, 1, cache)
        return Sample(STATES * (K + 1) / run.seconds, {"env_steps": run.env_steps, "reused": run.result.reused})

    def growth(self, restore: str) -> dict[str, Any]:
        runs = [self.collect(restore, states, COST, 1) for states in GROWTH]
        steps = [run.env_steps for run in runs]
        return {
            "runs": 1,
            "states": list(GROWTH),
            "env_steps": steps,
            "seconds": [run.seconds for run in runs],
            "steps_per_branch": [step / linear for step, linear in zip(steps, LINEAR, strict=True)],
        }

    def _compare(self, outcomes: list[Outcome]) -> None:
        states = len({step for step, _, _ in outcomes})
        if self._outcomes.setdefault(states, outcomes) != outcomes:
            raise RuntimeError(f"Two sides saw different outcomes along the trajectory of {states} states.")


def _config(**values: Any) -> CollectConfig:
    return CollectConfig.model_validate({"k": K, **values})


def _request(side: str, restore: str, cost: float, arguments: dict[str, Any]) -> dict[str, Any]:
    kwargs = {"milliseconds": cost}
    return {"side": side, "environment": importable(restore), "kwargs": kwargs, "task": TASK, "arguments": arguments}


def main() -> int:
    """Print all figures, and return whether one was below its threshold."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as folder:
        bench = Bench(Path(folder))
        # Ray starts processes of its own at first; they would be in the way of whatever is measured first.
        bench.collect("snapshot", 2, 0.0, 1)
        for restore in WORKERS:
            _figure(report, bench, f"collect/cost2ms/{restore}", restore, COST)
        report.figure("collect/cost2ms/warm", bench.warm, thresholds={"env_steps": Exactly(0)})
        for restore in WORKERS:
            _figure(report, bench, f"collect/bare/{restore}", restore, 0.0)
        for restore in WORKERS:
            content = {"name": f"collect/growth/{restore}", **bench.growth(restore)}
            if restore == "replay":
                report.line(content)
            else:
                report.line({**content, "expected_env_steps": LINEAR}, {"env_steps": Exactly(LINEAR)})
        prediction.figures(report, Path(folder))
    ray.shutdown()
    return 0 if report.met else 1


def _figure(report: Report, bench: Bench, name: str, restore: str, cost: float) -> None:
    constants, thresholds = {"workers": WORKERS[restore]}, dict(RATIOS[restore])
    if restore != "replay":
        constants["expected_env_steps"] = STATES * (K + 1)
        thresholds["env_steps"] = Exactly(STATES * (K + 1))
    ours, reference, limit = (partial(side, restore, cost) for side in (bench.ours, bench.reference, bench.limit))
    report.figure(name, ours, reference, limit, thresholds if cost else None, constants)


if __name__ == "__main__":
    sys.exit(main())
