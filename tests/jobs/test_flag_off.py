"""Installed but not asked for, the plugin changes nothing that the CPU platform does not change by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ee.trainer.cpu import HURDLES, active

WALK = """
import importlib, json, os, sys, types, warnings
warnings.simplefilter("ignore")
import hydra, ray
from omegaconf import OmegaConf

MODULES = [
    "verl.trainer.main_ppo", "verl.trainer.ppo.v1", "verl.trainer.ppo.v1.trainer_base", "verl.workers.engine_workers",
    "verl.workers.engine", "verl.workers.engine.fsdp.transformer_impl", "verl.workers.rollout.base",
    "verl.workers.rollout.replica", "verl.workers.rollout.vllm_rollout.vllm_rollout", "verl.utils.distributed",
    "verl.workers.rollout.vllm_rollout.vllm_async_server", "verl.experimental.agent_loop", "verl.checkpoint_engine",
    "verl.trainer.ppo.core_algos", "verl.utils.checkpoint.checkpoint_manager", "vllm", "torch.distributed",
]

KINDS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)

def name(value):
    # Other objects may stand for a module that is not installed, and fail when asked for their name.
    named = value if isinstance(value, KINDS) else type(value)
    return f"{named.__module__}.{named.__qualname__}"

def walk():
    for module in MODULES:
        importlib.import_module(module)
    attributes = {}
    for key, module in sorted(sys.modules.items()):
        if key.split(".")[0] in ("verl", "vllm", "torch") and module is not None:
            for attribute, value in sorted(vars(module).items()):
                if callable(value):
                    attributes[f"{key}:{attribute}"] = name(value)
                if isinstance(value, type) and value.__module__ == key:
                    for method, function in vars(value).items():
                        if callable(function):
                            attributes[f"{key}:{attribute}.{method}"] = name(function)
    from verl.checkpoint_engine import CheckpointEngineRegistry
    from verl.experimental.agent_loop import agent_loop
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout import base, replica
    registries = {
        "trainer": TRAINER_REGISTRY, "platform": PlatformRegistry._platforms, "engine": EngineRegistry._engines,
        "agent_loop": agent_loop._agent_loop_registry, "rollout": base._ROLLOUT_REGISTRY,
        "replica": replica.RolloutReplicaRegistry._registry, "checkpoint": CheckpointEngineRegistry._registry,
        "advantage": core_algos.ADV_ESTIMATOR_REGISTRY, "policy_loss": core_algos.POLICY_LOSS_REGISTRY,
    }
    plain = {key: json.dumps(_plain(value), sort_keys=True) for key, value in registries.items()}
    return {"attributes": attributes, "registries": plain}

def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, (str, int, float)) else name(value)

with hydra.initialize_config_module("verl.trainer.config", version_base=None):
    config = OmegaConf.to_yaml(hydra.compose("ppo_trainer"))
result = {"driver": walk(), "config": config}
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
result["worker"] = ray.get(ray.remote(walk).remote())
ray.shutdown()
json.dump(result, open(sys.argv[1], "w"))
"""


def _walk(plugins: str, path: str) -> dict[str, object]:
    # Without the platform, verl does not find the CPU build of vLLM under the name that it looks for.
    named = Path(path).parent / "named/vllm-0.29.0+cpu.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.0+cpu\n")
    env = os.environ | {
        "VERL_USE_EXTERNAL_PLUGINS": plugins,
        "PYTHONPATH": str(named.parent),
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run([sys.executable, "-c", WALK, path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(path) as file:
        return json.load(file)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("walks")
    return {plugins: _walk(plugins, str(folder / plugins)) for plugins in ("verl_ee", "verl_ee_cpu", "none")}


def test_configuration_is_equal(walks: dict[str, dict]) -> None:
    assert walks["verl_ee"]["config"] == walks["verl_ee_cpu"]["config"] == walks["none"]["config"]


@pytest.mark.parametrize("process", ["driver", "worker"])
def test_registries_are_equal(walks: dict[str, dict], process: str) -> None:
    assert walks["verl_ee"][process]["registries"] == walks["verl_ee_cpu"][process]["registries"]


@pytest.mark.parametrize("process", ["driver", "worker"])
def test_no_attribute_is_replaced(walks: dict[str, dict], process: str) -> None:
    ours, platform = (walks[name][process]["attributes"] for name in ("verl_ee", "verl_ee_cpu"))
    assert len(ours) > 10_000
    assert ours == platform


@pytest.mark.parametrize("process", ["driver", "worker"])
def test_the_cpu_platform_replaces_what_it_lists(walks: dict[str, dict], process: str) -> None:
    if not active():
        pytest.skip("this machine has an accelerator")
    platform, stock = (walks[name][process]["attributes"] for name in ("verl_ee_cpu", "none"))
    listed = {name for hurdle in HURDLES for name in hurdle.replaces}
    changed = {key for key in platform.keys() & stock.keys() if platform[key] != stock[key]}
    # A name that another module imported from the module that is listed.
    assert {key.split(":")[1] for key in changed} == {name.split(":")[1] for name in listed}
    assert {key for key in changed if key in listed} == listed
