"""Parts of checkpoints and their sizes, on engines of both kinds without workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from verl_ee.trainer.actor.engines import (
    checkpoint_bytes,
    checkpoint_contents,
    has_adapter,
    is_megatron,
    load_parts,
    local_parameters,
    shows_logits,
    vocabulary_group_of,
)
from verl_ee.trainer.actor.offload import Offload


class Manager(SimpleNamespace):
    """A checkpoint manager that saves and loads what the job asks for."""

    def __init__(self) -> None:
        super().__init__(checkpoint_save_contents=["model"], checkpoint_load_contents=["model", "extra"])


class Engine(SimpleNamespace):
    """An engine whose loads are noted with the parts that are loaded."""

    def __init__(self, strategy: str) -> None:
        manager = Manager()
        name = "checkpoint_mananager" if strategy == "megatron" else "checkpoint_manager"
        module = torch.nn.Linear(4, 2)
        module.bias.requires_grad_(False)
        super().__init__(engine_config=SimpleNamespace(strategy=strategy), module=module, **{name: manager})
        self.is_param_offload_enabled = self.is_optimizer_offload_enabled = False
        self.manager, self.loaded = manager, []

    def load_checkpoint(self, path: str, del_local_after_load: bool) -> None:
        self.loaded.append((path, self.manager.checkpoint_load_contents, del_local_after_load))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2", "megatron"])
def test_the_job_s_own_contents_come_back(strategy: str) -> None:
    engine: Any = Engine(strategy)

    def fail_inside() -> None:
        with checkpoint_contents(engine, ["optimizer"]):
            assert engine.manager.checkpoint_save_contents == engine.manager.checkpoint_load_contents == ["optimizer"]
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert engine.manager == Manager()
    assert is_megatron(engine) == (strategy == "megatron")


@pytest.mark.parametrize(
    ("strategy", "contents", "reloads"),
    [
        ("fsdp2", ["model"], 0),
        ("megatron", ["model"], 1),
        ("megatron", ["model", "optimizer"], 0),
    ],
)
def test_weights_that_megatron_loads_alone_reach_its_optimizer(
    strategy: str, contents: list[str], reloads: int
) -> None:
    engine: Any = Engine(strategy)
    calls: list[str] = []
    engine.optimizer = SimpleNamespace(reload_model_params=lambda: calls.append("reload"))
    load_parts(Offload(engine), "folder", contents)
    assert engine.loaded == [("folder", contents, False)]
    assert len(calls) == reloads


def test_a_checkpoint_has_two_moments_of_each_weight_that_is_trained() -> None:
    engine: Any = Engine("fsdp2")
    assert list(local_parameters(engine)) == ["weight", "bias"]
    assert checkpoint_bytes(engine) == 4 * (3 * 8 + 2)
    assert vocabulary_group_of(engine) is None


@pytest.mark.parametrize("refusing", ["pad_to_length", "dynamic_context_parallel", "use_fused_kernels"])
def test_logits_are_asked_for_where_verl_shows_them(refusing: str) -> None:
    engine: Any = Engine("megatron")
    engine.engine_config.use_fused_kernels = False
    assert shows_logits(engine)
    setattr(engine.engine_config, refusing, True)
    assert not shows_logits(engine)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, False),
        ({"lora_rank": 0, "lora": {"rank": 0}}, False),
        ({"lora_rank": 8}, True),
        ({"lora": {"rank": 8}}, True),
    ],
)
def test_an_adapter_has_its_rank_under_either_key(model: dict[str, Any], expected: bool) -> None:
    assert has_adapter(OmegaConf.create(model)) == expected
