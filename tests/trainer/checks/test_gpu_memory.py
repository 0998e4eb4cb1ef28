"""Weights, gradients and moments that cannot fit on a card, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig
from transformers import Qwen2Config

from verl_ee.errors import ConfigError
from verl_ee.trainer.checks.gpu_memory import check_memory, parameter_count, training_memory

GIB = 2**30
CARD = 80 * GIB
QWEN_7B = 7_615_616_512
"""Parameters of Qwen2.5-7B, as its model card says (7.61 B)."""


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", list(overrides))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of Qwen2.5-7B and no weights."""
    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen2Config(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    return folder


def test_parameters_are_counted_without_weights(qwen: Path, tmp_path: Path) -> None:
    assert parameter_count(str(qwen)) == QWEN_7B
    assert parameter_count("Qwen/Qwen2.5-7B") is None
    (tmp_path / "config.json").write_text('{"model_type": "nobodys"}')
    assert parameter_count(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # In float32: four bytes of weights, four of gradients, eight of moments.
        ((), (4e9, 4e9, 8e9)),
        (("trainer.n_gpus_per_node=1",), (32e9, 32e9, 64e9)),
        (("trainer.n_gpus_per_node=1", "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16"), (16e9, 16e9, 32e9)),
        (("trainer.n_gpus_per_node=1", "actor_rollout_ref.model.lora_rank=8"), (32e9, 0, 0)),
        (("actor_rollout_ref.actor.fsdp_config.fsdp_size=4",), (8e9, 8e9, 16e9)),
        (
            ("actor_rollout_ref.actor.strategy=fsdp2", "actor_rollout_ref.actor.fsdp_config.offload_policy=True"),
            (0, 0, 0),
        ),
        # Two tensor ranks: 2 bytes of weights and 4 of gradients each; the rest over four data-parallel ranks besides.
        (
            ("model_engine=megatron", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2"),
            (8e9 + 4e9, 16e9, 8e9),
        ),
    ],
)
def test_bytes_per_gpu(overrides: tuple[str, ...], expected: tuple[float, float, float]) -> None:
    config = composed("trainer.n_gpus_per_node=8", *overrides)
    memory = training_memory(config, 8_000_000_000)
    assert (memory.weights, memory.gradients, memory.moments) == pytest.approx(expected)


def refusal(config: DictConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_memory(config, CARD)
    return str(caught.value)


def test_a_model_that_cannot_fit_is_refused_with_what_would(qwen: Path) -> None:
    job = (f"actor_rollout_ref.model.path={qwen}", "actor_rollout_ref.actor.strategy=fsdp2")
    one_card = composed(*job, "trainer.n_gpus_per_node=1")
    message = refusal(one_card)
    # 16 bytes for each of 7.6 billion parameters.
    assert "113 GiB" in message
    assert "80 GiB" in message
    fixes = [word.strip(";") for word in message.split() if word.startswith("++")]
    assert [fix.split("=")[0].split(".")[-1] for fix in fixes] == [
        *("offload_policy", "model_dtype", "model_dtype", "lora_rank")
    ]
    for offered in message.split("Any of these would do: ")[1].split("; ")[:-1]:
        check_memory(composed(*job, "trainer.n_gpus_per_node=1", *offered.split()), CARD)
    check_memory(composed(*job, "trainer.n_gpus_per_node=8"), CARD)


def test_servers_that_do_not_sleep_take_their_share(qwen: Path) -> None:
    job = (f"actor_rollout_ref.model.path={qwen}", "trainer.n_gpus_per_node=2")
    check_memory(composed(*job), CARD)
    awake = (
        "actor_rollout_ref.rollout.free_cache_engine=False",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
    )
    message = refusal(composed(*job, *awake))
    assert "40 GiB" in message
    assert "free_cache_engine=False" in message


@pytest.mark.parametrize(
    "other",
    [
        (
            "actor_rollout_ref.actor.optim.optimizer=AdamW8bit",
            "actor_rollout_ref.actor.optim.optimizer_impl=bitsandbytes.optim",
        ),
        ("model_engine=megatron", "actor_rollout_ref.actor.megatron.expert_model_parallel_size=8"),
        (
            "model_engine=megatron",
            "+actor_rollout_ref.actor.optim.override_optimizer_config.optimizer_cpu_offload=True",
        ),
    ],
)
def test_where_the_sum_is_another_nothing_is_refused(qwen: Path, other: tuple[str, ...]) -> None:
    job = (f"actor_rollout_ref.model.path={qwen}", "trainer.n_gpus_per_node=1")
    engine = [item for item in other if item.startswith("model_engine")]
    assert refusal(composed(*job, *engine))
    check_memory(composed(*job, *other), CARD)
