"""Supervised stages on verl's Megatron engine, on a CPU: against plain PyTorch, saved and resumed, handed over."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from support import actors, megatron_actors
from support.job_checks import CPU
from support.megatron_actors import Row
from support.prompts import BARE_FORM
from transformers import AutoModelForCausalLM, AutoTokenizer

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.config import StageConfig
from verl_ee.envs import make
from verl_ee.experience.expert_files import write_experts
from verl_ee.experience.expert_states import expert_states
from verl_ee.objectives.schedule import learning_rate
from verl_ee.trainer.checks.job import check_job

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None or importlib.util.find_spec("mbridge") is None,
    reason="megatron-core and mbridge are not installed: pip install -e '.[megatron-cpu]'",
)
STAGE = StageConfig(objectives=("imitation",), epochs=1, lr=1e-3, batch_size=4, warmup_ratio=0.34)
STEPS = 6
"""In the middle of them the stage is saved, and another worker goes on with it."""
LAYOUTS = (
    pytest.param((1, 1, False), id="tp1-padded"),
    pytest.param((2, 1, True), id="tp2-packed"),
    pytest.param((1, 2, True), id="pp2-packed", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module")
def batches() -> list[list[Row]]:
    """Mini-batches of imitation, of the world model and of both, whose rows fill up micro-batches or do not."""
    tokenizer = AutoTokenizer.from_pretrained(actors.MODEL)
    trajectory = make("verl_ee/Household-v0").unwrapped.expert_trajectory("train/4")
    states = expert_states(trajectory, 2)
    rows: dict[str, list[Row]] = {"imitation": [], "world_model": []}
    for state, step, after in zip(states, trajectory.steps, trajectory.steps[1:], strict=False):
        texts = (
            ("imitation", BARE_FORM.policy_prompt(state), BARE_FORM.response(step.action)),
            ("world_model", BARE_FORM.world_model_prompt(state, step.action), BARE_FORM.outcome(after.observation)),
        )
        for name, messages, target in texts:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in (prompt, target)]
            rows[name].append((ids[0], [*ids[1], tokenizer.eos_token_id], name))
    draw = random.Random(0)
    both = [*rows["imitation"], *rows["world_model"]]
    pools = (rows["imitation"], rows["world_model"], both) * 2
    return [draw.sample(pool, size) for pool, size in zip(pools, (4, 3, 4, 2, 4, 3), strict=True)]


@pytest.fixture(scope="module")
def plain(batches: list[list[Row]]) -> dict[str, Any]:
    """The same steps, one row at a time and without any code of the package: loss, accuracy, norm, weights."""
    model = AutoModelForCausalLM.from_pretrained(actors.MODEL, dtype=torch.float32, attn_implementation="sdpa")
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    # Megatron decays matrices alone.
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    steps, weights = [], []
    for index, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(STAGE, index, STEPS)
        total, hits, tokens = torch.zeros(()), 0, 0
        for prompt, target, _ in rows:
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
            hits += int((logits.argmax(-1) == torch.tensor(target)).sum())
            tokens += len(target)
        optimizer.zero_grad()
        (total / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append({"loss": total.item() / tokens, "accuracy": hits / tokens, "grad_norm": float(norm)})
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
    return {"steps": steps, "middle": weights[STEPS // 2 - 1], "end": weights[-1]}


@pytest.fixture(scope="module", params=LAYOUTS)
def done(request: pytest.FixtureRequest, batches: list[list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stage on verl's Megatron engine: what each worker returned, and the folder of its checkpoints."""
    tp, pp, packed = request.param
    folder = tmp_path_factory.mktemp("megatron")
    results = megatron_actors.run(
        "stage", folder, tp, pp, batches=batches, stage=STAGE, packed=packed, into=str(folder)
    )
    return results, folder


def outputs(results: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The steps as told by the worker that has the outputs: with tensor or pipeline parallelism, not every one."""
    (steps,) = [result[key] for result in results if None not in result[key]]
    return steps


def test_losses_accuracies_and_weights_equal_plain_pytorch(done: Any, plain: dict[str, Any]) -> None:
    results, _ = done
    for index, (step, expected) in enumerate(zip(outputs(results, "steps"), plain["steps"], strict=True)):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        # verl tells the rate behind a step; the schedule is stepped once more behind the last one.
        assert step["lr"] == pytest.approx(learning_rate(STAGE, min(index + 1, STEPS - 1), STEPS))
        summary = step["summary"]
        names = [name for name in ("imitation", "world_model") if f"{name}/tokens" in summary]
        tokens = sum(summary[f"{name}/tokens"] for name in names)
        hits = sum(summary[f"{name}/token_accuracy"] * summary[f"{name}/tokens"] for name in names)
        assert hits / tokens == pytest.approx(expected["accuracy"])
    assert any(step["accuracy"] > 0 for step in plain["steps"])
    for result in results:
        for when in ("middle", "end"):
            assert set(result[when]) >= set(plain[when])
            for name, expected in plain[when].items():
                difference = (result[when][name] - expected).norm() / expected.norm()
                assert difference < 1e-5, (when, name)


def test_the_cache_of_the_device_is_kept_in_a_stage_and_left_to_verl_behind_it(done: Any) -> None:
    results, _ = done
    assert [result["emptied"] for result in results] == [(0, 1)] * len(results)


def test_a_stage_saved_and_resumed_by_a_fresh_worker_gives_equal_bits(done: Any) -> None:
    results, _ = done
    assert outputs(results, "resumed") == outputs(results, "steps")[STEPS // 2 :]
    for result in results:
        assert result["resumed_weights_equal"]
        states = result["states"]
        assert states["loaded"]["weights"] != states["fresh"]["weights"]
        assert states["loaded"]["schedule"] == STEPS // 2
        assert states["loaded"]["lr"] == pytest.approx(learning_rate(STAGE, STEPS // 2, STEPS))


def test_hand_over_leaves_a_fresh_optimizer_and_the_schedule_of_grpo(done: Any) -> None:
    results, folder = done
    for result in results:
        before, after, grpo = (result["states"][name] for name in ("before", "after", "grpo"))
        assert before["parameters_with_moments"] > 0
        assert before["schedule"] == STEPS
        assert after["weights"] == before["weights"]
        assert after["parameters_with_moments"] == after["schedule"] == 0
        assert after["lr"] == pytest.approx(1e-4)
        assert grpo == after
        assert result["loss_restored"]
        assert result["rotated"] == []
    size = sum(path.stat().st_size for path in (folder / "global_step_0").rglob("*") if path.is_file())
    assert sum(result["bytes"] for result in results) == pytest.approx(size, rel=0.2)


def test_the_checkpoint_holds_a_hugging_face_model(done: Any, plain: dict[str, Any]) -> None:
    results, folder = done
    path = folder / "global_step_0/actor/model/huggingface"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for name, value in model.named_parameters():
        assert (value - results[0]["end"][name]).abs().max() <= 2e-6, name
    assert AutoTokenizer.from_pretrained(path).chat_template


@pytest.mark.slow
def test_a_stock_worker_group_takes_the_same_steps(
    batches: list[list[Row]], plain: dict[str, Any], tmp_path: Path
) -> None:
    (steps,) = actors.run(
        "group", 1, tmp_path, script=megatron_actors.__file__, batches=batches, stage=STAGE, tp=2, pp=1
    )
    for step, expected in zip(steps, plain["steps"], strict=False):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_weights_loaded_without_an_optimizer_outlive_the_next_step(batches: list[list[Row]], tmp_path: Path) -> None:
    (result,) = megatron_actors.run(
        "weights_alone", tmp_path, 1, 1, batches=batches, stage=STAGE, into=str(tmp_path / "stage")
    )
    for name, trained in result["trained"].items():
        assert torch.equal(result["after"][name], trained), name
    assert any(not torch.equal(result["first"][name], trained) for name, trained in result["trained"].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hurdle", "words"),
    [
        ("register_bridges", "NameError: name 'TENorm' is not defined"),
        ("allocate_before_loading", "assert len(steps) == 1"),
    ],
)
def test_a_defect_is_still_there(
    batches: list[list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurdle: str, words: str
) -> None:
    monkeypatch.setenv("MEGATRON_CPU_WITHOUT", hurdle)
    with pytest.raises(AssertionError, match=re.escape(words)):
        megatron_actors.run("stage", tmp_path, 1, 1, batches=batches, stage=STAGE, packed=False, into=str(tmp_path))


@pytest.mark.slow
def test_steps_are_still_lost_in_loading(
    batches: list[list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGATRON_CPU_WITHOUT", "keep_steps_apart")
    results = megatron_actors.run(
        "stage", tmp_path, 1, 1, batches=batches, stage=STAGE, packed=False, dtype="bfloat16", into=str(tmp_path)
    )
    assert outputs(results, "resumed") != outputs(results, "steps")[STEPS // 2 :]


def test_the_flag_composes_with_megatron_on_the_stock_command_line(tmp_path: Path) -> None:
    env = make("verl_ee/Household-v0")
    write_experts(tmp_path / "experts.jsonl", [env.unwrapped.expert_trajectory("train/0")])
    overrides = [
        "+early_experience=iwm",
        "early_experience.environment.id=verl_ee/Household-v0",
        f"early_experience.experts={tmp_path}/experts.jsonl",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={tmp_path}/run",
        *(key for key in megatron_actors.overrides(2, 1, True) if "megatron.dtype" not in key),
        *CPU,
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    assert config.actor_rollout_ref.actor.strategy == config.actor_rollout_ref.ref.strategy == "megatron"
    assert config.actor_rollout_ref.ref.megatron.vanilla_mbridge
    assert config.actor_rollout_ref.ref.megatron.tensor_model_parallel_size == 2
    assert check_job(config).method == "iwm"
