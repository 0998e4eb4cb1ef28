"""Offloaded weights are read and written on the device alone, and brought there no more often than needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import actors, mid_training_runs
from support.actor_rows import Rows

from verl_ee.trainer.actor import offload
from verl_ee.trainer.actor.engines import keep_cached_memory, load_parts, load_reference, restore_optimizer_step
from verl_ee.trainer.actor.offload import Offload
from verl_ee.trainer.actor.worker import fingerprint

STEPS = 6
"""Steps of each of two stages."""


def program(name: str, folder: Path, **arguments: Any) -> Any:
    return actors.run(name, 1, folder, script=mid_training_runs.__file__, **arguments)[0]


@pytest.fixture(scope="module")
def runs(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """Two stages that save every second step, with weights and moments offloaded and not."""
    folder = tmp_path_factory.mktemp("offload")
    return {
        offloads: program(
            "mid_train",
            folder / f"run{offloads}",
            rows=rows,
            into=str(folder / f"into{offloads}"),
            save_freq=2,
            offloads=offloads,
        )
        for offloads in (False, True)
    }


def test_an_offloaded_stage_ends_with_the_same_weights(runs: dict[bool, Any]) -> None:
    assert runs[True]["state"] == runs[False]["state"]
    assert runs[True]["updates"] == 2 * STEPS


def test_weights_and_moments_move_once_per_save_and_not_at_every_step(runs: dict[bool, Any]) -> None:
    loads = [move for move in runs[True]["moves"] if move[0] != "cpu"]
    saves = 2 * STEPS // 2
    # At the beginning of each stage, and again after every save but a stage's last.
    assert len(loads) == saves
    assert all(move[1:] == (True, True) for move in runs[True]["moves"])
    assert len(runs[True]["moves"]) == 2 * saves
    assert runs[False]["moves"] == []


@pytest.mark.parametrize("overrides", [(), mid_training_runs.LORA], ids=["full", "lora"])
def test_the_reference_of_an_offloaded_policy_is_the_same(rows: Rows, tmp_path: Path, overrides: Any) -> None:
    plain, away = (
        program(
            "anchored",
            tmp_path / f"run{offloads}",
            rows=rows,
            into=str(tmp_path / f"{offloads}"),
            overrides=overrides,
            offloads=offloads,
        )
        for offloads in (False, True)
    )
    for name in ("base", "policy", "reference", "later", "moved", "state", "fingerprint"):
        assert away[name] == plain[name], name
    resumed = program(
        "anchored",
        tmp_path / "again",
        rows=rows,
        into=str(tmp_path / "True"),
        resume=True,
        overrides=overrides,
        offloads=True,
    )
    assert resumed["reference"] == plain["reference"]
    assert resumed["state"] == plain["state"]


class Freed:
    """A Megatron engine that frees the memory of its weights while they are away."""

    def __init__(self) -> None:
        self.engine_config = SimpleNamespace(strategy="megatron")
        self.module = [torch.nn.Linear(3, 2)]
        self.is_param_offload_enabled, self.is_optimizer_offload_enabled = True, True
        self.optimizer = SimpleNamespace(reload_model_params=self._reload)
        self.bridge, self.vanilla_bridge = SimpleNamespace(load_weights=self._load), True
        self.checkpoint_mananager = SimpleNamespace(checkpoint_save_contents=[], checkpoint_load_contents=[])
        self.main_weights: list[torch.Tensor] = []
        self.emptied = 0
        self._away: list[torch.Tensor] = []
        self.to("cpu", True, True, True)

    def to(self, device: str, model: bool, optimizer: bool, grad: bool) -> None:
        if model and device == "cpu" and not self._away:
            self._away = [value.data.clone() for value in self.module[0].parameters()]
            for value in self.module[0].parameters():
                value.data.untyped_storage().resize_(0)
        elif model and device != "cpu" and self._away:
            for value, kept in zip(self.module[0].parameters(), self._away, strict=True):
                value.data.untyped_storage().resize_(kept.nbytes)
                value.data.copy_(kept)
            self._away = []

    def load_checkpoint(self, path: str, del_local_after_load: bool) -> None:
        self.to("device", True, False, False)
        self._load(self.module, path)
        self.to("cpu", True, True, True)

    def optimizer_step(self) -> float:
        self.emptied += self._distillation_use_topk_active
        return 0.5

    def _load(self, module: Any, path: str) -> None:
        self._check_weights_are_there()
        for value in module[0].parameters():
            value.data.fill_(2.0)

    def _reload(self) -> None:
        self._check_weights_are_there()
        self.main_weights = [value.data.clone() for value in self.module[0].parameters()]

    def _check_weights_are_there(self) -> None:
        # Whoever reads freed memory, as pytest does to show a tensor, ends the whole process.
        sizes = [value.data.untyped_storage().nbytes() for value in self.module[0].parameters()]
        assert all(sizes), "the memory of the weights was freed"


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(offload, "get_device_name", lambda: "device")
    return Freed()


def test_the_fingerprint_of_freed_weights_is_theirs(freed: Any) -> None:
    away = fingerprint(Offload(freed))
    freed.to("device", True, False, False)
    freed.is_param_offload_enabled = False
    assert fingerprint(Offload(freed)) == away


def test_a_reference_is_loaded_where_it_computes(freed: Any) -> None:
    load_reference(Offload(freed), "folder")
    freed.to("device", True, False, False)
    assert all(bool((value == 2.0).all()) for value in freed.module[0].parameters())


def test_full_precision_weights_are_taken_from_weights_that_are_there(freed: Any) -> None:
    for is_loaded in (False, True):
        actor = Offload(freed)
        if is_loaded:
            actor.load()
        load_parts(actor, "folder", ["model"])
        assert all(bool((value == 2.0).all()) for value in freed.main_weights)
        freed.main_weights = []


def test_megatron_keeps_its_cached_memory_in_a_stage_alone(freed: Any) -> None:
    keep_cached_memory(freed)
    for _ in range(3):
        # A forward pass that shows logits sets it.
        freed._distillation_use_topk_active = True
        assert freed.optimizer_step() == 0.5
    assert freed.emptied == 0
    restore_optimizer_step(freed)
    freed._distillation_use_topk_active = True
    freed.optimizer_step()
    assert freed.emptied == 1
