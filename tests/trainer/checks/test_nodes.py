"""A cluster whose nodes see different folders is refused with node, key and path, before a job starts anything."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import ray
from omegaconf import OmegaConf
from ray.cluster_utils import Cluster
from support.jobs import ROOT

from verl_ee.errors import ConfigError
from verl_ee.trainer import trainer
from verl_ee.trainer.checks import nodes
from verl_ee.trainer.checks.nodes import RUN, check_nodes, shared_paths
from verl_ee.trainer.trainer_modes import EarlyExperienceTrainer

MODEL = "actor_rollout_ref.model.path"


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The home folders of two nodes, which a path with `~` leads to."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(first))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1, env_vars={"HOME": str(second)})
        # A node without processors runs no workers.
        cluster.add_node(num_cpus=0, env_vars={"HOME": "/nowhere"})
        cluster.connect()
        cluster.wait_for_nodes()
        yield first, second
        ray.shutdown()
        cluster.shutdown()


def test_folders_that_every_node_sees_pass(homes: tuple[Path, Path], tmp_path: Path) -> None:
    check_nodes({RUN: str(tmp_path / "new"), MODEL: str(ROOT / "examples/tiny_base/model")})
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("there", ["nothing", "other files"])
def test_a_run_s_folder_that_a_node_does_not_share_is_refused(homes: tuple[Path, Path], there: str) -> None:
    path = f"~/run with {there}"
    if there != "nothing":
        (homes[1] / path[2:]).mkdir()
    with pytest.raises(ConfigError) as refused:
        check_nodes({RUN: path})
    message = str(refused.value)
    assert message.startswith("Not all of the 2 nodes of the cluster can run this job: node ")
    assert f"has {there} at trainer.default_local_dir={path!r}. Workers need these paths" in message
    assert message.count(" has ") == 1
    assert list((homes[0] / path[2:]).iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_of_the_model_will_do_and_another_model_will_not(
    homes: tuple[Path, Path], tmp_path: Path, same: bool
) -> None:
    path = f"model {same}"
    for number, home in enumerate(homes):
        (home / path / f".cache{number}").mkdir(parents=True)
        (home / path / f".state{number}").touch()
        # As large and with the same begin, as weights are that were trained further.
        end = bytes([0 if same else number])
        (home / path / "model.safetensors").write_bytes(bytes(200_000) + end)
    check = functools.partial(check_nodes, {RUN: str(tmp_path), MODEL: f"~/{path}"})
    if same:
        check()
    else:
        with pytest.raises(ConfigError, match=r"has other files at actor_rollout_ref\.model\.path='~/model False'"):
            check()


def test_paths_of_workers_are_looked_at_and_addresses_are_not(tmp_path: Path) -> None:
    (tmp_path / "loops.yaml").touch()
    keys = {
        "trainer": {"default_local_dir": "runs/here"},
        "actor_rollout_ref": {
            "model": {"path": "Qwen/Qwen2.5-0.5B", "tokenizer_path": str(tmp_path), "hf_config_path": None},
            "rollout": {"agent": {"agent_loop_config_path": str(tmp_path / "loops.yaml")}},
        },
    }
    assert shared_paths(OmegaConf.create(keys)) == {
        RUN: "runs/here",
        "actor_rollout_ref.model.tokenizer_path": str(tmp_path),
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(tmp_path / "loops.yaml"),
    }
    keys["actor_rollout_ref"]["model"] = {"path": "hdfs://models/one"}
    assert MODEL not in shared_paths(OmegaConf.create(keys))


def test_a_job_looks_at_the_nodes_before_it_builds_anything(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], tmp_path: Path
) -> None:
    asked = list[dict[str, str]]()

    def refuse(paths: dict[str, str]) -> None:
        asked.append(paths)
        raise ConfigError("not shared")

    monkeypatch.setattr(trainer, "check_nodes", refuse)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    with pytest.raises(ConfigError, match="not shared"):
        EarlyExperienceTrainer(config)
    assert set(asked[0]) == {RUN, MODEL}
    assert Path(asked[0][RUN]).is_absolute()


def test_a_node_that_does_not_answer_is_named(
    homes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SECONDS", 0.0)
    with pytest.raises(ConfigError, match="did not answer in 0 seconds"):
        check_nodes({RUN: str(tmp_path)})
