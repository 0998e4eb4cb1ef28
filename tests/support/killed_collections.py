"""Collections in processes of their own, which tests kill, or from which a node is taken."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from support.games import Gated, expert, id_of

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.experience.branching.workers import connect_ray
from verl_ee.experience.collecting import collection
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.store import TRANSITION_SCHEMA

GAMES, LENGTH, K = 8, 5, 7
ROWS = LENGTH * (K + 1)
"""Of one game."""
TRAJECTORIES = [expert(f"game {number}", LENGTH) for number in range(GAMES)]
NODES = 4


def let_in(gate: Path, games: int) -> None:
    """Let the first so many games begin."""
    for number in range(games):
        (gate / f"game {number}").touch()


def collect(folder: Path, gate: Path, log: Path, workers: int) -> None:
    """Collect all games, each of which has to be let in, and write the numbers beside the log."""
    collection.FLUSH_SECONDS = 0.0
    environment = EnvironmentConfig(id=id_of(Gated), kwargs={"gate": str(gate), "log": str(log)})
    config = CollectConfig(k=K, workers=workers, restore="replay")
    result = collection.Collection(folder, TRAJECTORIES, environment, config, {"experts": "0a1b"}).run(quiet=True)
    log.with_suffix(".json").write_text(json.dumps(asdict(result)))


def join(folder: Path, gate: Path, log: Path) -> None:
    """Collect on the Ray that the surroundings name."""
    connect_ray()
    collect(folder, gate, log, 2)


def lose_node(folder: Path, gate: Path, log: Path) -> None:
    """Collect on four nodes of one CPU each; one is lost while its worker waits for a game that is not let in."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    # It would make every driver that starts on this machine meanwhile join this cluster.
    ray._private.utils.write_ray_address = lambda *_: None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]
    ray.init(address=cluster.address, log_to_driver=False)

    def lose() -> None:
        parts = PartFiles(folder / "parts" / "transitions", TRANSITION_SCHEMA)
        while len(parts.read()) < NODES * (K + 1):
            threading.Event().wait(0.02)
        (raylet,) = nodes[1].all_processes["raylet"]
        workers = psutil.Process(raylet.process.pid).children(recursive=True)
        cluster.remove_node(nodes[1], allow_graceful=False)
        psutil.wait_procs(workers)
        let_in(gate, GAMES)

    let_in(gate, NODES)
    threading.Thread(target=lose, daemon=True).start()
    collect(folder, gate, log, NODES)


if __name__ == "__main__":
    program, *paths = sys.argv[1:]
    {"join": join, "lose_node": lose_node}[program](*map(Path, paths))
