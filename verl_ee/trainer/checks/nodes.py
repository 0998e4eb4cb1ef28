"""A check of the cluster: every node that may run workers sees the folders that a job shares, and the same in them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from omegaconf import DictConfig
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_ee.errors import ConfigError
from verl_ee.experience.files.atomic import digest

SECONDS = 120.0
"""Time that a node has to answer. It starts a Python process first."""
RUN, MODEL = "trainer.default_local_dir", "actor_rollout_ref.model.path"


def shared_paths(config: DictConfig) -> dict[str, str]:
    """Return the paths that workers on any node read or write, by key; a model that verl downloads is none.

    Everything else that a job reads, it reads in one process: experts, stores, rows and tasks need not be shared.

    Args:
        config: config of verl.
    """
    model = str(config.actor_rollout_ref.model.path)
    local = {MODEL: model} if Path(model).expanduser().exists() else {}
    return {RUN: str(config.trainer.default_local_dir), **local}


def check_nodes(paths: Mapping[str, str]) -> None:
    """Refuse a cluster in which a node does not see the paths as this process does.

    Args:
        paths: path of each key; that of `RUN` is a folder that can be written.

    Raises:
        ConfigError: naming each node, key and path.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and _runs_workers(node["Resources"])]
    if len(nodes) < 2:
        return
    # A folder of the same name on another disk looks the same until something new is in it.
    marker = Path(paths[RUN]).expanduser() / f".shared-{uuid.uuid4().hex}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        expected = _seen(paths, marker.name)
        differing = [
            f"node {node['NodeManagerAddress']} {problem}"
            for node in nodes
            for problem in _problems(paths, expected, _seen_on(node["NodeID"], paths, marker.name))
        ]
    finally:
        marker.unlink()
    if differing:
        raise ConfigError(
            f"{len(nodes)} nodes share a job, and not all of them see its folders: {'; '.join(differing)}. Put these "
            "folders on a file system that every node mounts at the same path."
        )


def _runs_workers(resources: Mapping[str, float]) -> bool:
    return resources.get("CPU", 0) > 0 or resources.get("GPU", 0) > 0


def _seen(paths: Mapping[str, str], marker: str) -> dict[str, str]:
    """Return what tells the content of each path from another, seen from this process; empty where nothing is."""
    seen = {}
    for key, text in paths.items():
        path = Path(text).expanduser()
        if not path.exists():
            seen[key] = ""
        elif key == RUN:
            seen[key] = "with the marker" if (path / marker).exists() else "without it"
        else:
            seen[key] = digest(sorted((item.name, item.stat().st_size) for item in path.glob("*")))
    return seen


def _seen_on(node_id: str, paths: Mapping[str, str], marker: str) -> dict[str, str] | str:
    """Return what a node sees, or why it does not say."""
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    look = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_seen)
    try:
        seen: dict[str, str] = ray.get(look.remote(dict(paths), marker), timeout=SECONDS)
        return seen
    except GetTimeoutError:
        return f"did not answer in {SECONDS:g} seconds"
    except RayError as error:
        return f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"


def _problems(paths: Mapping[str, str], expected: Mapping[str, str], seen: Mapping[str, str] | str) -> list[str]:
    if isinstance(seen, str):
        return [seen]
    return [
        f"has {'another folder' if seen[key] else 'nothing'} at {key}={path!r}"
        for key, path in paths.items()
        if seen[key] != expected[key]
    ]
