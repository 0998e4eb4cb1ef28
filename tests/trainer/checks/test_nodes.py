"""A cluster whose nodes see different folders is refused with node, key and path, before a job starts anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from support.jobs import ROOT

from verl_ee.errors import ConfigError
from verl_ee.trainer.checks import nodes
from verl_ee.trainer.checks.nodes import MODEL, RUN, check_nodes


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The home folders of two nodes, which a path with `~` leads to."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(first))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1, env_vars={"HOME": str(second)})
        # A head of a cluster that runs no workers need not see anything.
        cluster.add_node(num_cpus=0, env_vars={"HOME": "/nowhere"})
        cluster.connect()
        cluster.wait_for_nodes()
        yield first, second
        ray.shutdown()
        cluster.shutdown()


def test_folders_that_every_node_sees_pass(homes: tuple[Path, Path], tmp_path: Path) -> None:
    check_nodes({RUN: str(tmp_path / "new"), MODEL: str(ROOT / "examples/tiny_base/model")})
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("there", ["nothing", "another folder"])
def test_a_run_s_folder_that_a_node_does_not_share_is_refused(homes: tuple[Path, Path], there: str) -> None:
    path = f"~/run of {there}"
    if there != "nothing":
        (homes[1] / path[2:]).mkdir()
    with pytest.raises(ConfigError) as refused:
        check_nodes({RUN: path})
    message = str(refused.value)
    assert message.startswith("2 nodes share a job, and not all of them see its folders: node ")
    assert f"has {there} at trainer.default_local_dir={path!r}. Put these folders" in message
    assert message.count(" has ") == 1


def test_another_model_under_the_same_path_is_refused(homes: tuple[Path, Path], tmp_path: Path) -> None:
    for home, size in zip(homes, (10, 11), strict=True):
        (home / "model").mkdir()
        (home / "model" / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=r"has another folder at actor_rollout_ref\.model\.path='~/model'"):
        check_nodes({RUN: str(tmp_path), MODEL: "~/model"})


def test_a_node_that_does_not_answer_is_named(
    homes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SECONDS", 0.0)
    with pytest.raises(ConfigError, match="did not answer in 0 seconds"):
        check_nodes({RUN: str(tmp_path)})
