"""Check of the agents that a job's datasets name: the one of this package plays in an environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig

from verl_ee.config import EarlyExperienceConfig, check_environment
from verl_ee.config.needs import MISSING
from verl_ee.experience.task_files import AGENT_NAME

COLUMN = "agent_name"
DEFAULT_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"


def check_agents(config: DictConfig, early: EarlyExperienceConfig) -> None:
    """Refuse a job that names no environment, and whose datasets are played in one.

    Later every episode would fail by it, and verl would go on, or wait for episodes that succeed.

    Args:
        config: the whole job.
        early: its keys under `early_experience`.

    Raises:
        ConfigError: naming the file.
    """
    if early.environment.id != MISSING:
        return
    default = config.actor_rollout_ref.rollout.agent.default_agent_loop
    for key, path in dataset_files(config.data):
        agents = _agents(path)
        if agents is None:
            continue
        if AGENT_NAME in agents:
            check_environment(early, f"rows of data.{key}={path} name")
        if not agents and default == AGENT_NAME:
            check_environment(early, f"rows of data.{key}={path} name none, and {DEFAULT_LOOP} is")


def dataset_files(data: DictConfig) -> Iterator[tuple[str, str]]:
    """Return the key and the path of each file of the job's datasets.

    Args:
        data: the job's keys under `data`.
    """
    for key in ("train_files", "val_files"):
        files = data.get(key) or []
        for path in files if isinstance(files, ListConfig) else [files]:
            yield key, str(path)


def _agents(dataset: str) -> set[object] | None:
    """Return the agents that the rows of a dataset name; None if it is no local Parquet file, which is left to verl."""
    path = Path(dataset).expanduser()
    if not dataset.endswith(".parquet") or not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            if COLUMN not in file.schema_arrow.names:
                return set()
            return set(file.read(columns=[COLUMN])[COLUMN].unique().to_pylist())
    except (OSError, pa.ArrowException):
        return None
