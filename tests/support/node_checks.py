"""What the check of nodes says in a cluster of two nodes with different home folders, as JSON, by scenario.

python -m support.node_checks FIRST_HOME SECOND_HOME
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

import ray
from ray.cluster_utils import Cluster
from support.jobs import ROOT

from verl_ee.errors import ConfigError
from verl_ee.trainer.checks import nodes
from verl_ee.trainer.checks.nodes import RUN, check_nodes

MODEL = "actor_rollout_ref.model.path"


def message(paths: Mapping[str, str]) -> str:
    """Return why paths are refused; empty if they are not."""
    try:
        check_nodes(paths)
    except ConfigError as error:
        return str(error)
    return ""


def main() -> None:
    """Start the cluster and print the messages."""
    first, second = sys.argv[1:]
    # It would make every driver that starts on this machine meanwhile join this cluster.
    ray._private.utils.write_ray_address = lambda *_: None
    os.environ["HOME"] = first
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1, env_vars={"HOME": second})
    # A node without processors runs no workers.
    cluster.add_node(num_cpus=0, env_vars={"HOME": "/nowhere"})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    run = f"{first}/run"
    messages = {
        "shared": message({RUN: run, MODEL: str(ROOT / "examples/tiny_base/model")}),
        "nothing": message({RUN: "~/nothing"}),
        "other files": message({RUN: "~/other"}),
        "copy": message({RUN: run, MODEL: "~/copy"}),
        "another model": message({RUN: run, MODEL: "~/model"}),
    }
    nodes.SECONDS = 0.0
    print(json.dumps(messages | {"late": message({RUN: run})}))


if __name__ == "__main__":
    main()
