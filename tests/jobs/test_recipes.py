"""Every recipe composes, on GPUs and on a CPU, with device, engines and servers as documented and nothing missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from support.job_checks import check
from support.jobs import ROOT

RECIPES = sorted(ROOT.glob("recipes/*/run.sh"))
METHODS = ("iwm", "imitation", "sr", "iwm_sr")
UNUSED = {"reward.reward_model.rollout.name"}
"""A key that verl's own config leaves open: the server of a reward model, which these jobs do not have."""
STAND_IN = """#!/bin/bash
# Answers for `verl-ee` and `python`: says how many GPUs there are, and writes down the job's overrides.
case "$*" in
  "check --gpus") echo "$STAND_IN_GPUS" ;;
  *find_spec*) exit "$STAND_IN_NO_FLASH" ;;
  *main_ppo*) shift 2; printf '%s\\n' "$@" > "$STAND_IN_OVERRIDES" ;;
  *) [[ $0 == *verl-ee ]] && exec "$STAND_IN_VERL_EE" "$@" ;;
esac
"""


def composed(recipe: Path, folder: Path, method: str = "iwm", flash: bool = True, **environment: str) -> DictConfig:
    """Return the config of a recipe's job on a machine that the environment describes."""
    for name in ("python", "verl-ee"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    env = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "METHOD": method,
        "OUT": str(folder / "out"),
        "DEMOS": "1",
        "EPISODES": "1",
        "STAND_IN_GPUS": "0",
        "STAND_IN_NO_FLASH": str(int(not flash)),
        "STAND_IN_OVERRIDES": str(folder / "overrides"),
        "STAND_IN_VERL_EE": str(Path(sys.executable).parent / "verl-ee"),
    }
    done = subprocess.run(["bash", recipe], env=env | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    overrides = [*(folder / "overrides").read_text().splitlines(), f"hydra.run.dir={folder}/hydra"]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_on_gpus_nothing_is_missing(recipe: Path, method: str, tmp_path: Path) -> None:
    config = composed(recipe, tmp_path, method, STAND_IN_GPUS="8", TP="2")
    assert OmegaConf.missing_keys(config) == UNUSED
    trainer, job = config.trainer, config.actor_rollout_ref
    assert (trainer.device, trainer.n_gpus_per_node, trainer.nnodes) == ("cuda", 8, 1)
    assert (job.actor.strategy, job.ref.strategy) == ("fsdp2", "fsdp2")
    assert (job.rollout.name, job.rollout.tensor_model_parallel_size) == ("vllm", 2)
    assert job.rollout.free_cache_engine
    assert job.rollout.prompt_length + job.rollout.response_length <= job.rollout.max_model_len
    assert OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM") is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_on_a_cpu_the_job_passes_every_check(recipe: Path, method: str, tmp_path: Path) -> None:
    config = composed(recipe, tmp_path, method)
    assert OmegaConf.missing_keys(config) == UNUSED
    assert (config.trainer.device, config.trainer.n_gpus_per_node) == ("cpu", 1)
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM == "cpu"
    check((tmp_path / "overrides").read_text().splitlines())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_a_cpu_that_is_asked_for_is_taken_where_there_are_gpus(recipe: Path, tmp_path: Path) -> None:
    config = composed(recipe, tmp_path, STAND_IN_GPUS="8", VERL_PLATFORM="cpu")
    assert config.trainer.device == "cpu"


@pytest.mark.parametrize(("flash", "expected"), [(True, None), (False, "sdpa")])
def test_torchs_attention_takes_the_place_of_a_package_that_is_missing(
    tmp_path: Path, flash: bool, expected: str | None
) -> None:
    config = composed(RECIPES[0], tmp_path, flash=flash, STAND_IN_GPUS="1")
    assert config.actor_rollout_ref.model.override_config.get("attn_implementation") == expected
    assert config.actor_rollout_ref.model.use_remove_padding == flash


def test_weights_can_stay_in_the_hosts_memory(tmp_path: Path) -> None:
    config = composed(RECIPES[0], tmp_path, STAND_IN_GPUS="1", OFFLOAD="policy")
    assert config.actor_rollout_ref.actor.fsdp_config.offload_policy
