"""A cluster whose nodes see different folders is refused with node, key and path, before a job starts anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from support.jobs import ROOT
from support.node_checks import MODEL

from verl_ee.errors import ConfigError
from verl_ee.trainer import trainer
from verl_ee.trainer.checks.nodes import RUN, check_nodes, shared_paths
from verl_ee.trainer.trainer_modes import EarlyExperienceTrainer


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The home folders of two nodes, which a path with `~` leads to."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    (second / "other").mkdir()
    for number, home in enumerate((first, second)):
        for name, end in (("copy", 0), ("model", number)):
            (home / name / f".cache{number}").mkdir(parents=True)
            (home / name / f".state{number}").touch()
            # As large and with the same begin, as weights are that were trained further.
            (home / name / "model.safetensors").write_bytes(bytes(200_000) + bytes([end]))
    return first, second


@pytest.fixture(scope="module")
def messages(homes: tuple[Path, Path]) -> dict[str, str]:
    """What the check says, by scenario."""
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    # A Ray that was started before leaves an address and a mode of access, whose token lies in another home.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "support.node_checks", *map(str, homes)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["shared", "copy"])
def test_what_every_node_sees_passes(messages: dict[str, str], homes: tuple[Path, Path], scenario: str) -> None:
    assert messages[scenario] == ""
    assert list((homes[0] / "run").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("there", "path"), [("nothing", "~/nothing"), ("other files", "~/other")])
def test_a_run_s_folder_that_a_node_does_not_share_is_refused(messages: dict[str, str], there: str, path: str) -> None:
    message = messages[there]
    assert message.startswith("Not all of the 2 nodes of the cluster can run this job: node ")
    assert f"has {there} at trainer.default_local_dir={path!r}. Workers need these paths" in message
    assert message.count(" has ") == 1


@pytest.mark.slow
def test_another_model_under_the_same_path_is_refused(messages: dict[str, str]) -> None:
    assert "has other files at actor_rollout_ref.model.path='~/model'" in messages["another model"]


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_named(messages: dict[str, str]) -> None:
    assert "did not answer in 0 seconds" in messages["late"]


def test_a_process_without_ray_has_no_nodes(tmp_path: Path) -> None:
    check_nodes({RUN: str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


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
