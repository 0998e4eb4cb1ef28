"""Actor, reference and servers compute in one dtype on any processor; a job in which they would not is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import hydra
import pytest
from support.job_checks import check, refusal
from support.jobs import ROOT, Job, run_recipe
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.torch_dtypes import PrecisionType

REF, ACTOR = "actor_rollout_ref.ref.", "actor_rollout_ref.actor."
MIXED, HELD = "fsdp_config.mixed_precision", "fsdp_config.model_dtype"
FSDP1 = (f"{ACTOR}strategy=fsdp",)
MEGATRON = ("model_engine=megatron",)


def sourced(dtype: str, processor: Path | str = "/proc/cpuinfo") -> subprocess.CompletedProcess[str]:
    """Source `recipes/cpu.sh` with a CPU_DTYPE, on a processor that a file describes."""
    grep = 'grep() { command grep "${@:1:$#-1}" "$PROCESSOR"; }'
    script = f'{grep}; source recipes/cpu.sh && printf "%s\\n" "${{CPU[@]}}"'
    environment = {"PATH": "/usr/bin:/bin", "CPU_DTYPE": dtype, "PROCESSOR": str(processor)}
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)


def composed(given: list[str]) -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", given).actor_rollout_ref


def precisions(side: Any) -> set[Any]:
    """Return the dtypes of verl's FSDP engine on a side: in which it computes and reduces, and of its buffers."""
    mixed = omega_conf_to_dataclass(side.fsdp_config).mixed_precision or {}
    defaults = {"param_dtype": "bf16", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {(key, PrecisionType.to_dtype(mixed.get(key, default))) for key, default in defaults.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_actor_reference_and_servers_of_the_recipe_have_one_dtype(dtype: str) -> None:
    config = composed(sourced(dtype).stdout.splitlines())
    assert precisions(config.actor) == precisions(config.ref)
    assert ("param_dtype", PrecisionType.to_dtype(dtype)) in precisions(config.actor)
    assert config.rollout.dtype == dtype
    assert config.actor.fsdp_config.model_dtype == config.ref.fsdp_config.model_dtype


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("avx2 avx512_bf16", "bfloat16"), ("amx_bf16 amx_tile", "bfloat16"), ("avx2 avx512f amx_tile", "float32")],
)
def test_the_processor_decides_where_nobody_did(tmp_path: Path, flags: str, dtype: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    decided = sourced("", tmp_path / "cpuinfo")
    assert decided.stdout == sourced(dtype).stdout
    for other in ("bfloat16", "float32"):
        assert sourced(other, tmp_path / "cpuinfo").stdout == sourced(other).stdout


def test_a_dtype_that_the_recipe_lacks_is_refused() -> None:
    done = sourced("float16")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "CPU_DTYPE=float16" in done.stderr
    assert "bfloat16, float32" in done.stderr


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ((f"+{ACTOR}{MIXED}={{param_dtype: fp32}}",), f"{MIXED}.param_dtype"),
        ((f"+{REF}{MIXED}={{param_dtype: float16}}",), f"{MIXED}.param_dtype"),
        ((*FSDP1, f"+{REF}{MIXED}={{param_dtype: bf16, buffer_dtype: bf16}}"), f"{MIXED}.buffer_dtype"),
        ((f"{REF}{HELD}=bf16",), HELD),
        # verl holds what is unset in float32 where it trains, and else in bfloat16.
        ((f"{REF}{HELD}=null", f"{ACTOR}{HELD}=null"), HELD),
        ((*MEGATRON, f"{ACTOR}megatron.dtype=float16"), "megatron.dtype"),
    ],
)
def test_a_reference_of_another_dtype_is_refused(overrides: list[str], given: tuple[str, ...], key: str) -> None:
    job = [*overrides, f"{ACTOR}use_kl_loss=True", *given]
    message = refusal(job)
    assert f"{ACTOR}{key}=" in message
    fix = next(word for word in message.replace(",", " ").split() if word.startswith(f"++{REF}{key}="))
    check([*job, fix])
    check([*job, "early_experience.hand_over.reference=base"])
    check([*overrides, *given])


@pytest.mark.parametrize(
    "given",
    [
        (),
        FSDP1,
        (f"{ACTOR}strategy=fsdp2",),
        MEGATRON,
        # One dtype under two names.
        (f"+{ACTOR}{MIXED}={{param_dtype: fp32}}", f"+{REF}{MIXED}={{param_dtype: float32}}"),
        # Gradients are reduced, and a reference has none.
        (f"+{ACTOR}{MIXED}={{reduce_dtype: bf16}}",),
        # FSDP2 casts no buffers.
        (f"{ACTOR}strategy=fsdp2", f"+{ACTOR}{MIXED}={{buffer_dtype: bf16}}"),
        (f"{ACTOR}{HELD}=null",),
        (f"{REF}{HELD}=bf16", f"{ACTOR}{HELD}=bfloat16"),
        # The actor without its adapter, or with an older one, is the reference.
        (f"+{ACTOR}{MIXED}={{param_dtype: fp32}}", "actor_rollout_ref.model.lora_rank=8"),
    ],
)
def test_a_reference_that_computes_as_the_actor_does_passes(overrides: list[str], given: tuple[str, ...]) -> None:
    check([*overrides, f"{ACTOR}use_kl_loss=True", "actor_rollout_ref.model.lora.merge=True", *given])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_reference_of_a_job_is_the_handed_over_policy(tmp_path: Path, dtype: str) -> None:
    done = run_recipe(tmp_path, CPU_DTYPE=dtype)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    job = Job(tmp_path, output)
    gaps = [row["early_experience/reference_gap"] for row in job.rows("metrics.jsonl") if row["stage"] == "grpo"]
    assert gaps[0] <= 1e-5
    assert gaps[1] > 1e-3
    before, after, reference = job.fingerprints
    assert before == after == reference
