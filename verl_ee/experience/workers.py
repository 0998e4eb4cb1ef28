"""Ray workers that step environments: one environment each, alive for the whole stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from tqdm import tqdm

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, make
from verl_ee.errors import BranchError
from verl_ee.experience.brancher import Branches, branch_trajectory

BAR_SECONDS = 5.0
"""Between two updates of a progress bar: Ray prints each as a line of its own."""
TRIES = 2
"""Attempts per trajectory before the stage stops."""


class EnvironmentWorker:
    """Holds one environment and branches the trajectories that it is given."""

    def __init__(self, environment: EnvironmentConfig, config: CollectConfig) -> None:
        self._env = make(environment.id, environment.kwargs)
        self._config = config

    def branch(self, index: int, trajectory: ExpertTrajectory) -> Branches:
        """Branch at every state of a trajectory."""
        return branch_trajectory(self._env, trajectory, index, self._config)


def collect(
    trajectories: Sequence[ExpertTrajectory], environment: EnvironmentConfig, config: CollectConfig
) -> Branches:
    """Branch at every state of every trajectory on `config.workers` Ray workers.

    Returns:
        The results of all trajectories, in the order of the file.

    Raises:
        BranchError: if a trajectory failed on `TRIES` workers.
    """
    remote = ray.remote(EnvironmentWorker).options(num_cpus=1)
    alive = [remote.remote(environment, config) for _ in range(min(config.workers, len(trajectories)))]
    idle = list(alive)
    busy: dict[Any, tuple[Any, int]] = {}
    waiting, tries = list(range(len(trajectories)))[::-1], [0] * len(trajectories)
    results: dict[int, Branches] = {}
    states = sum(len(trajectory.steps) for trajectory in trajectories)
    try:
        with tqdm(total=states, desc="collect", unit="state", mininterval=BAR_SECONDS) as bar:
            while waiting or busy:
                while waiting and idle:
                    worker, index = idle.pop(), waiting.pop()
                    busy[worker.branch.remote(index, trajectories[index])] = (worker, index)
                (done,), _ = ray.wait(list(busy), num_returns=1)
                worker, index = busy.pop(done)
                try:
                    results[index] = ray.get(done)
                except ray.exceptions.RayError as error:
                    tries[index] += 1
                    _give_up_after(tries[index], index, trajectories[index], error)
                    waiting.append(index)
                    worker = remote.remote(environment, config)
                    alive.append(worker)
                else:
                    bar.set_postfix(mismatches=sum(len(r.mismatches) for r in results.values()), refresh=False)
                    bar.update(len(trajectories[index].steps))
                idle.append(worker)
    finally:
        for worker in alive:
            ray.kill(worker)
    total = Branches()
    for index in range(len(trajectories)):
        total.add(results[index])
    return total


def _give_up_after(tries: int, index: int, trajectory: ExpertTrajectory, error: Exception) -> None:
    if tries >= TRIES:
        cause = str(error).strip().splitlines()[-1]
        raise BranchError(
            f"Trajectory {index} (task {trajectory.task}) failed on {tries} environment workers; the last one said: "
            f"{cause}. Check the environment with `verl-ee envs`."
        ) from error
