"""A check of the cluster: every node that may run workers sees the paths that workers share."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_ee.errors import ConfigError

SECONDS = 120.0
"""Time that the nodes have to answer. Each starts a Python process first."""
RUN = "trainer.default_local_dir"
ACTOR = "actor_rollout_ref"
READ = (
    f"{ACTOR}.model.path",
    f"{ACTOR}.model.tokenizer_path",
    f"{ACTOR}.model.hf_config_path",
    f"{ACTOR}.model.lora_adapter_path",
    f"{ACTOR}.rollout.agent.agent_loop_config_path",
)
"""Keys of paths that verl's workers read."""
_MARKED = "with the marker"
_SAMPLE = 65_536
"""Bytes at the begin and the end of a file that tell it from another one of its name and size."""


def shared_paths(config: DictConfig) -> dict[str, str]:
    """Return the paths that workers on any node read or write, by key; names of a hub and other addresses are none.

    Args:
        config: config of verl.
    """
    values = {key: OmegaConf.select(config, key) for key in READ}
    read = {key: str(value) for key, value in values.items() if value and Path(str(value)).expanduser().exists()}
    return {RUN: str(config.trainer.default_local_dir), **read}


def check_nodes(paths: Mapping[str, str]) -> None:
    """Refuse a cluster in which a node does not see the paths as this process does.

    Args:
        paths: path of each key; that of `RUN` is a folder that can be written.

    Raises:
        ConfigError: naming each node, key and path.
    """
    known = ray.nodes() if ray.is_initialized() else []
    nodes = [node for node in known if node["Alive"] and _runs_workers(node["Resources"])]
    if len(nodes) < 2:
        return
    # A folder of the same name on another disk looks the same until something new is in it.
    marker = Path(paths[RUN]).expanduser() / f".shared-{uuid.uuid4().hex}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        seen = _seen_on([node["NodeID"] for node in nodes], paths, marker.name)
    finally:
        marker.unlink(missing_ok=True)
    expected = {**_seen(paths, ""), RUN: _MARKED}
    problems = [
        f"node {node['NodeManagerAddress']} {problem}"
        for node, answer in zip(nodes, seen, strict=True)
        for problem in ([answer] if isinstance(answer, str) else _differences(paths, expected, answer))
    ]
    if problems:
        raise ConfigError(
            f"Not all of the {len(nodes)} nodes of the cluster can run this job: {'; '.join(problems)}. Workers need "
            "these paths, in full, on a file system that every node mounts, or the same files on each, and an "
            "environment of Python with verl_ee."
        )


def _runs_workers(resources: Mapping[str, float]) -> bool:
    return resources.get("CPU", 0) > 0 or resources.get("GPU", 0) > 0


def _seen(paths: Mapping[str, str], marker: str) -> dict[str, str]:
    """Return a text for each path, which differs if the path holds other files; it is empty where nothing is."""
    seen = {}
    for key, text in paths.items():
        path = Path(text).expanduser()
        if not path.exists():
            seen[key] = ""
        elif key == RUN:
            seen[key] = _MARKED if (path / marker).exists() else "without it"
        else:
            files = [path] if path.is_file() else sorted(item for item in path.iterdir() if item.is_file())
            # Hidden files are those of tools, such as the state of a download.
            seen[key] = " ".join(_fingerprint(file) for file in files if not file.name.startswith("."))
    return seen


def _fingerprint(path: Path) -> str:
    size, sha = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        sha.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        sha.update(file.read(_SAMPLE))
    return f"{path.name} {size} {sha.hexdigest()}"


def _seen_on(node_ids: list[str], paths: Mapping[str, str], marker: str) -> list[dict[str, str] | str]:
    """Return for each node what it sees, or why it does not say."""
    tasks = [
        ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))(
            _seen
        ).remote(dict(paths), marker)
        for node_id in node_ids
    ]
    done, late = ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS)
    for task in late:
        ray.cancel(task)
    return [_answer(task) if task in done else f"did not answer in {SECONDS:g} seconds" for task in tasks]


def _answer(task: ray.ObjectRef[dict[str, str]]) -> dict[str, str] | str:
    try:
        seen: dict[str, str] = ray.get(task)
        return seen
    except RayError as error:
        return f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"


def _differences(paths: Mapping[str, str], expected: Mapping[str, str], seen: Mapping[str, str]) -> list[str]:
    return [
        f"has {'other files' if seen[key] else 'nothing'} at {key}={path!r}"
        for key, path in paths.items()
        if seen[key] != expected[key]
    ]
