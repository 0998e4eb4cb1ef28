"""Supervised stages on verl's real actor worker, against plain PyTorch."""

from __future__ import annotations

import math
from pathlib import Path

import actors
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ee.envs import make
from verl_ee.experience.rendering import render_outcome, render_policy, render_response, render_world_model
from verl_ee.experience.states import expert_states

Rows = list[tuple[list[int], list[int], str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Five examples of each objective, of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(actors.MODEL)
    env = make("verl_ee/Household-v0")
    trajectory = env.unwrapped.expert_trajectory("train/4")
    states = expert_states(trajectory, 8)
    result: Rows = []
    for index in range(5):
        step = trajectory.steps[index]
        after = trajectory.steps[index + 1].observation
        texts = (
            (render_policy(states[index]), render_response(step.action), "imitation"),
            (render_world_model(states[index], step.action), render_outcome(after), "world_model"),
        )
        for messages, target, name in texts:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            encode = tokenizer.encode
            ids = encode(prompt, add_special_tokens=False), encode(target, add_special_tokens=False)
            result.append((ids[0], [*ids[1], tokenizer.eos_token_id], name))
    return result


def plain(rows: Rows) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
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


@pytest.mark.parametrize(("workers", "micro", "dynamic"), [(1, 10, False), (1, 3, False), (2, 2, False), (2, 1, True)])
def test_loss_and_gradients_equal_plain_pytorch(
    rows: Rows, tmp_path: Path, workers: int, micro: int, dynamic: bool
) -> None:
    results = actors.run("supervised_step", workers, tmp_path, rows=rows, micro=micro, dynamic=dynamic)
    loss, gradients, per_objective = plain(rows)
    for result in results:
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert set(result["gradients"]) == set(gradients)
        for name, expected in gradients.items():
            difference = (result["gradients"][name] - expected).norm() / expected.norm()
            assert difference < 1e-5, name
    summary = results[0]["summary"]
    for name, expected in per_objective.items():
        assert summary[f"{name}/loss"] == pytest.approx(expected, rel=1e-5)
        assert summary[f"{name}/tokens"] == sum(len(target) for _, target, kind in rows if kind == name)
        assert 0.0 <= summary[f"{name}/token_accuracy"] <= 1.0


def test_hand_over_leaves_a_fresh_optimizer_and_keeps_its_checkpoint(rows: Rows, tmp_path: Path) -> None:
    imitation = [row for row in rows if row[2] == "imitation"]
    folder = tmp_path / "run"
    (result,) = actors.run("hand_over", 1, tmp_path, rows=imitation, into=str(folder))
    # Two of four steps warm up; then half a cosine over the other two.
    expected = [2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3 * 0.5 * (1 + math.cos(math.pi / 2))]
    assert result["rates"] == pytest.approx(expected)
    assert result["losses"][-1] < result["losses"][0]
    assert result["before"]["parameters_with_moments"] > 0
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
