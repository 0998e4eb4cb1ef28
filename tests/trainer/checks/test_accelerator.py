"""A job that does not fit the machine is refused with what helps; GPUs are stood in for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import DictConfig
from support.job_checks import CPU

from verl_ee.errors import ConfigError
from verl_ee.trainer.checks import accelerator
from verl_ee.trainer.checks.accelerator import check_accelerator, machine_problems, usable_gpus

CARD = 80 * 2**30
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Returns a function that stands in for a machine: GPUs of torch, a driver's list, packages."""
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def stand_in(gpus: int = 0, listed: int = 0, packages: tuple[str, ...] = (), driver: str = "") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=CARD))
        lines = "\n".join(f"echo 'GPU {index}: NVIDIA H100 80GB HBM3'" for index in range(listed))
        if listed:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        absent = {"flash_attn", "mbridge", "megatron.bridge", "transformer_engine"} - set(packages)
        present = lambda name: None if name in absent else (name in packages or find_spec(name))  # noqa: E731
        monkeypatch.setattr(accelerator, "find_spec", present)
        if driver:
            monkeypatch.setattr(torch.version, "cuda", "13.0")
            monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError(driver)))

    return stand_in


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_accelerator(composed(*overrides))
    return str(caught.value)


def test_gpus_are_counted_by_torch(machine: Machine) -> None:
    machine(gpus=4, listed=8)
    assert usable_gpus() == 4


def test_a_machine_without_a_driver_has_none(machine: Machine) -> None:
    machine()
    assert usable_gpus() == 0
    check_accelerator(composed())


def test_gpus_that_are_hidden_on_purpose_are_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(listed=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert usable_gpus() == 0


def test_gpus_that_a_cpu_build_of_torch_cannot_use_are_an_error(machine: Machine) -> None:
    machine(listed=2)
    message = refusal()
    for words in (
        "nvidia-smi lists 2 GPU (GPU 0: NVIDIA H100",
        "built for the CPU",
        "extra `vllm`",
        "VERL_PLATFORM=cpu",
    ):
        assert words in message
    assert machine_problems() == [message]


def test_a_driver_that_is_too_old_is_an_error_in_its_own_words(machine: Machine) -> None:
    machine(listed=1, driver="The NVIDIA driver on your system is too old (found version 11040).\nPlease update")
    message = refusal()
    assert "too old (found version 11040)" in message
    assert "built for CUDA 13.0" in message
    assert "Update the driver" in message


@pytest.mark.parametrize("said", [1, 2, 3, 4, 5, 6])
def test_a_cpu_that_is_asked_for_in_one_place_alone_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    machine()
    if said & 1:
        monkeypatch.setenv("VERL_PLATFORM", "cpu")
    message = refusal(*(part for bit, part in zip((2, 4), CPU, strict=True) if said & bit))
    there, missing = message.split("; not in ")
    names = ("environment variable VERL_PLATFORM", "trainer.device", "env_vars.VERL_PLATFORM")
    for bit, name in zip((1, 2, 4), names, strict=True):
        assert (name in there) == bool(said & bit)
        assert (name in missing.split(". For a job")[0]) == (not said & bit)


def test_a_cpu_that_is_asked_for_everywhere_needs_nothing_of_a_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(listed=8)
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    check_accelerator(composed(*CPU))
    assert machine_problems() == []


def test_flash_attention_needs_its_package(machine: Machine) -> None:
    machine(gpus=1)
    message = refusal()
    assert "pip install --no-build-isolation 'flash-attn==2.8.3'" in message
    assert machine_problems() == [message]
    fix = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    assert fix in message
    check_accelerator(composed(fix))
    machine(gpus=1, packages=("flash_attn",))
    check_accelerator(composed())


def test_megatron_needs_a_bridge_and_transformer_engine(machine: Machine) -> None:
    job = "model_engine=megatron"
    machine(gpus=1)
    message = refusal(job)
    fix = "actor_rollout_ref.actor.megatron.vanilla_mbridge=True"
    assert fix in message
    assert "mbridge" in refusal(job, fix)
    machine(gpus=1, packages=("mbridge",))
    assert "transformer-engine[core_cu13,pytorch]>=2.9,<2.12" in refusal(job, fix)
    machine(gpus=1, packages=("mbridge", "transformer_engine"))
    check_accelerator(composed(job, fix))
