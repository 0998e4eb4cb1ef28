"""Supervised stages on verl's real actor worker, against plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import actors
from transformers import AutoModelForCausalLM

from verl_ee.objectives.loss import OBJECTIVES

Rows = list[tuple[list[int], list[int], str]]
Plain = tuple[float, dict[str, torch.Tensor], dict[str, float]]
MICRO = (1, 3, 8, None)
"""Rows of a micro-batch; None: as many as fit into a number of tokens."""
MIXED = "mixed"


@pytest.fixture(scope="module")
def mini_batches(rows: Rows) -> dict[str, Rows]:
    """A mini-batch of each objective, and one of all of them."""
    return {name: [row for row in rows if row[2] == name] for name in OBJECTIVES} | {MIXED: rows}


@pytest.fixture(scope="module")
def expected(mini_batches: dict[str, Rows]) -> dict[str, Plain]:
    return {name: plain(rows) for name, rows in mini_batches.items()}


@pytest.fixture(scope="module")
def measured(mini_batches: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bool], Any]:
    """Return what every worker measured of every case, with so many workers and with padding removed or not."""
    cases = {(name, micro): (rows, micro) for name, rows in mini_batches.items() for micro in MICRO}

    @cache
    def run(workers: int, remove_padding: bool) -> Any:
        folder = tmp_path_factory.mktemp("actors")
        return actors.run("supervised_gradients", workers, folder, cases=cases, remove_padding=remove_padding)

    return run


FLOAT32 = 5e-5
"""Bound on the relative difference of two gradients. Plain PyTorch's own are 1e-5 away from those in float64 here."""


def plain(rows: Rows) -> Plain:
    """Loss, gradients and loss per objective, one row at a time and without any code of the package."""
    model = AutoModelForCausalLM.from_pretrained(actors.MODEL, dtype=torch.float32, attn_implementation="sdpa")
    total, count = torch.zeros(()), 0
    sums: dict[str, list[float]] = {}
    for prompt, target, name in rows:
        logits = model(torch.tensor([prompt + target])).logits[0]
        predicted = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        nll = -predicted[torch.arange(len(target)), torch.tensor(target)]
        total, count = total + nll.sum(), count + len(target)
        sums.setdefault(name, []).extend(nll.tolist())
    loss = total / count
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, {name: sum(values) / len(values) for name, values in sums.items()}


@pytest.mark.parametrize("micro", MICRO)
@pytest.mark.parametrize("name", [*OBJECTIVES, MIXED])
@pytest.mark.parametrize("remove_padding", [False, True], ids=["padded", "removed"])
@pytest.mark.parametrize("workers", [1, 2])
def test_loss_and_gradients_equal_plain_pytorch(
    mini_batches: dict[str, Rows],
    expected: dict[str, Plain],
    measured: Callable[[int, bool], Any],
    workers: int,
    remove_padding: bool,
    name: str,
    micro: int | None,
) -> None:
    """Without padding the rows of a micro-batch are one sequence: none may see another."""
    results = [result[name, micro] for result in measured(workers, remove_padding)]
    loss, gradients, per_objective = expected[name]
    assert len(results) == workers
    for result in results:
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert set(result["gradients"]) == set(gradients)
        for parameter, gradient in gradients.items():
            difference = (result["gradients"][parameter] - gradient).norm() / gradient.norm()
            assert difference < FLOAT32, parameter
    summary = results[0]["summary"]
    assert {key.split("/")[0] for key in summary} == set(per_objective)
    for objective, value in per_objective.items():
        tokens = sum(len(target) for _, target, kind in mini_batches[name] if kind == objective)
        assert summary[f"{objective}/loss"] == pytest.approx(value, rel=1e-5)
        assert summary[f"{objective}/tokens"] == tokens
        assert 0.0 <= summary[f"{objective}/token_accuracy"] <= 1.0


def test_what_verl_pads_to_a_length_is_trained_without_showing_its_logits(
    mini_batches: dict[str, Rows], expected: dict[str, Plain], tmp_path: Path
) -> None:
    cases = {MIXED: (mini_batches[MIXED], 3)}
    overrides = ("actor_rollout_ref.actor.pad_to_length=True",)
    (result,) = actors.run("supervised_gradients", 1, tmp_path, cases=cases, remove_padding=True, overrides=overrides)
    loss, _, per_objective = expected[MIXED]
    assert result[MIXED]["loss"] == pytest.approx(loss, rel=1e-5)
    # Accuracies take the logits.
    measured = {key for key in result[MIXED]["summary"] if not key.endswith("/tokens")}
    assert measured == {f"{objective}/loss" for objective in per_objective}


def test_hand_over_leaves_a_fresh_optimizer_and_keeps_its_checkpoint(rows: Rows, tmp_path: Path) -> None:
    imitation = [row for row in rows if row[2] == "imitation"]
    folder = tmp_path / "run"
    (result,) = actors.run("hand_over", 1, tmp_path, rows=imitation, into=str(folder))
    # Two of four steps warm up; then half a cosine over the other two.
    expected = [2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3 * 0.5 * (1 + math.cos(math.pi / 2))]
    assert result["rates"] == pytest.approx(expected)
    assert result["losses"][-1] < result["losses"][0]
    assert result["before"]["parameters_with_moments"] > 0
    assert result["with_optimizer"] == result["before"] | {"lr": pytest.approx(1e-3), "schedule": 0}
    assert result["after"]["parameters_with_moments"] == 0
    assert result["after"]["weights"] == result["before"]["weights"]
    assert result["after"]["lr"] == pytest.approx(1e-3)
    assert result["loss_restored"]
    assert result["kept"] == [True, False, True]
    saved = torch.load(folder / "global_step_0/actor/optim_world_size_1_rank_0.pt", weights_only=False)
    assert saved["state"] == {}


def test_updates_without_the_flag_give_equal_bits(tmp_path: Path) -> None:
    stock = actors.run("ppo_steps", 1, tmp_path / "a", plugins="verl_ee_cpu", stock=True)
    ours = actors.run("ppo_steps", 1, tmp_path / "b", plugins="verl_ee", stock=True)
    mixed = actors.run("ppo_steps", 1, tmp_path / "c", plugins="verl_ee", stock=False)
    assert stock == ours == mixed
