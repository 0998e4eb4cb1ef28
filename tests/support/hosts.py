"""Hosts of the tests' games: how one is started, and which method to restore a state it chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.games import Game, expert, id_of

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.branching.supervisor import HostSupervisor


@contextmanager
def supervised(
    environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory
) -> Iterator[HostSupervisor]:
    """Supervise a host that is ready for units, and end it at the end."""
    supervisor = HostSupervisor(environment, config, sample)
    try:
        supervisor.choose_restore(config.restore)
        yield supervisor
    finally:
        supervisor.close()


def chosen_restore(
    cls: type[Game], requested: str = "auto", sample: ExpertTrajectory | None = None, **kwargs: Any
) -> tuple[str, Usage]:
    """Return the method that a host of a game chooses, and the usage of its trial."""
    environment = EnvironmentConfig(id=id_of(cls), kwargs=kwargs)
    config = CollectConfig.model_validate({"restore": requested, "step_timeout": 10.0, "start_timeout": 10.0})
    with supervised(environment, config, sample or expert(length=5)) as supervisor:
        return supervisor.restore, supervisor.trial_usage
