"""Installed but not asked for, the plugin changes nothing: not where there is a GPU, and not where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from verl_ee.trainer.cpu import HURDLES

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
address = os.environ.get("STARTED_BEFORE", "local")
names = ("PYTHONPATH", "VERL_USE_EXTERNAL_PLUGINS", "VERL_PLATFORM")
variables = {key: os.environ[key] for key in names if key in os.environ}
size = {"num_cpus": 1, "include_dashboard": False} if address == "local" else {}
ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=False, **size)
result["worker"] = ray.get(ray.remote(walk).remote())
ray.shutdown()
json.dump(result, open(sys.argv[1], "w"))
"""
Walks = dict[str, dict]


def _walk(folder: Path, name: str, plugins: str, **environment: str) -> dict:
    """Return what a process and a worker of Ray see of verl, vLLM and torch."""
    # Without the platform, verl does not find the CPU build of vLLM under the name that it looks for.
    named = folder / "named/vllm-0.29.0+cpu.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.0+cpu\n")
    env = os.environ | {
        "VERL_USE_EXTERNAL_PLUGINS": plugins,
        "PYTHONPATH": str(named.parent),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    del env["VERL_PLATFORM"]
    command = [sys.executable, "-c", WALK, str(folder / name)]
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def driver_tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which a stand-in of nvidia-smi lists a GPU."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def older_cluster() -> Iterator[str]:
    """The address of a Ray that was started without any of a job's variables."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}
    env["RAY_AUTH_MODE"] = "disabled"
    ray_command = str(Path(sys.executable).parent / "ray")
    # In a folder of its own, so that no other job connects to it by itself; its sockets need a short path.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    start = [ray_command, "start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    start.append(f"--temp-dir={folder}")
    done = subprocess.run(start, env=env, capture_output=True, text=True, timeout=120)
    found = re.search(r"--address='([\d.]+:\d+)'", done.stdout)
    assert found, done.stdout + done.stderr
    yield found.group(1)
    # `ray stop` would end every Ray of this machine.
    for process in psutil.process_iter(["cmdline"]):
        if folder in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory, driver_tools: str, older_cluster: str) -> Walks:
    folder = tmp_path_factory.mktemp("walks")
    older = {"STARTED_BEFORE": older_cluster}
    return {
        # A name that no plugin has: verl looks for plugins as it always does.
        "stock": _walk(folder, "stock", "nobodys_plugin"),
        "installed": _walk(folder, "installed", "auto"),
        "installed, driver": _walk(folder, "installed, driver", "auto", PATH=driver_tools),
        "installed, older cluster": _walk(folder, "installed, older cluster", "auto", **older),
        "asked for": _walk(folder, "asked for", "verl_ee_cpu", VERL_PLATFORM="cpu", **older),
    }


UNASKED = ("installed", "installed, driver", "installed, older cluster")


@pytest.mark.parametrize("ours", UNASKED)
def test_configuration_is_verls(walks: Walks, ours: str) -> None:
    assert walks[ours]["config"] == walks["stock"]["config"]


@pytest.mark.parametrize("process", ["driver", "worker"])
@pytest.mark.parametrize("ours", UNASKED)
def test_no_registry_entry_is_ours(walks: Walks, ours: str, process: str) -> None:
    assert walks[ours][process]["registries"] == walks["stock"][process]["registries"]


@pytest.mark.parametrize("process", ["driver", "worker"])
@pytest.mark.parametrize("ours", UNASKED)
def test_no_attribute_is_replaced(walks: Walks, ours: str, process: str) -> None:
    attributes = walks[ours][process]["attributes"]
    assert len(attributes) > 10_000
    assert attributes == walks["stock"][process]["attributes"]


@pytest.mark.parametrize("process", ["driver", "worker"])
def test_the_cpu_platform_replaces_what_it_lists(walks: Walks, process: str) -> None:
    platform, stock = (walks[name][process]["attributes"] for name in ("asked for", "stock"))
    listed = {name for hurdle in HURDLES for name in hurdle.replaces}
    changed = {key for key in platform.keys() & stock.keys() if platform[key] != stock[key]}
    # A name that another module imported from the module that is listed.
    assert {key.split(":")[1] for key in changed} == {name.split(":")[1] for name in listed}
    assert {key for key in changed if key in listed} == listed
