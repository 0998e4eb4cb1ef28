"""The household's jobs on a GPU, at a size of seconds, and what they show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from support.gpu_table import Recording
from support.jobs import METHODS, ROOT, SMALL, Job, recipe_environment

from verl_ee.experience.progress import read_plugin_line
from verl_ee.experience.store import read_branches

PLATFORM = os.environ.get("GPU_TESTS_PLATFORM", "")
"""`cpu` runs the jobs without a card, so that this module can be tried; the line of the memory fails then."""
SAMPLE_SECONDS = 0.1
"""Time between two looks at the memory of the card."""
OFFLOADED = (
    "actor_rollout_ref.actor.fsdp_config.param_offload=True",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=True",
)
LORA = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.target_modules=all-linear",
)
if PLATFORM == "cpu":
    # vLLM's CPU build takes no adapter.
    LORA = (*LORA, "actor_rollout_ref.model.lora.merge=True")
SAVES = "early_experience.save_freq=3"
KILLED_AT_ROWS = 8
"""Rows of metrics after which a job is killed: within its first stage, behind a checkpoint."""


@dataclass(frozen=True)
class Watched:
    """A finished job, and the memory of the card meanwhile.

    Attributes:
        job: its folder and output.
        training: bytes used while stages train, at least; NaN if nobody could look.
        most: bytes used at any time.
    """

    job: Job
    training: float
    most: float


def record(folder: Path) -> Recording:
    """Run the jobs and return what they showed.

    Raises:
        RuntimeError: if one ends with an error.
    """
    plain = run(folder / "plain", "iwm", SAVES)
    offloaded = run(folder / "offloaded", "iwm", SAVES, *OFFLOADED)
    reflected = run(folder / "sr", "sr", "early_experience.reflection.min_accepted=0")
    adapter = run(folder / "lora", "iwm", *LORA)
    resumed = run_killed(folder / "killed", "iwm", SAVES)
    before, after, reference = plain.job.fingerprints
    grpo = [row for row in plain.job.rows("metrics.jsonl") if row["stage"] == "grpo"]
    return Recording(
        card=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        policy_before=before,
        policy_after=after,
        reference=reference,
        reference_gap=grpo[0]["early_experience/reference_gap"],
        correlation=min(row["training/rollout_actor_probs_pearson_corr"] for row in grpo),
        memory_training=plain.training,
        memory_most=plain.most,
        losses=stage_losses(plain.job),
        losses_offloaded=stage_losses(offloaded.job),
        losses_resumed=stage_losses(resumed),
        own_alternatives=own_alternatives(reflected.job),
        adapter_change=adapter_change(adapter.job),
        merged_wrong=merged_wrong(plain.job, folder / "merged"),
    )


def run(folder: Path, method: str, *overrides: str) -> Watched:
    """Run a job to its end, and look at the memory of the card all the while."""
    process, memory, lines = _start(folder, method, overrides), _Memory(), list[str]()
    with memory:
        for line in process.stdout or ():
            lines.append(line)
            _note_training(line, memory)
    output = "".join(lines)
    if process.wait():
        raise RuntimeError(f"{folder.name} ended with status {process.returncode}:\n{output[-5000:]}")
    return Watched(Job(folder, output), memory.least_training, memory.most)


def run_killed(folder: Path, method: str, *overrides: str) -> Job:
    """Kill a job within its first stage, and repeat it to its end."""
    process = _start(folder, method, overrides)
    metrics = folder / "early_experience/metrics.jsonl"
    for _ in process.stdout or ():
        if metrics.exists() and len(metrics.read_text().splitlines()) >= KILLED_AT_ROWS:
            os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{folder.name} ended with status {process.returncode} before it was killed")
    return run(folder, method, *overrides).job


def stage_losses(job: Job) -> list[float]:
    """Return the loss of every step of the stages, each once and in order.

    Raises:
        RuntimeError: if a step is missing or there twice.
    """
    rows = [row for row in job.rows("metrics.jsonl") if row["stage"] != "grpo"]
    if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
        raise RuntimeError(f"{job.folder}/early_experience/metrics.jsonl lacks a step, or has one twice")
    return [row[f"{row['stage']}/loss"] for row in rows]


def own_alternatives(job: Job) -> float:
    """Return how many alternatives per state the policy itself proposed."""
    branches = read_branches(job.folder / "early_experience/store/reflection")
    states = {branch.ref for branch in branches}
    return sum(branch.proposer == "policy" for branch in branches) / len(states)


def adapter_change(job: Job) -> float:
    """Return the norm of what GRPO changed in the adapter's weights."""
    first, last = (_weights(job, step) for step in (0, 2))
    changes = [(last[name].float() - value.float()).norm() for name, value in first.items() if "lora_" in name]
    return float(torch.stack(changes).norm())


def merged_wrong(job: Job, target: Path) -> int:
    """Merge the hand-over, load the model, and return how many of its weights differ from the checkpoint's."""
    from transformers import AutoModelForCausalLM

    actor = job.folder / "global_step_0/actor"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
    subprocess.run([*command, "--target_dir", str(target)], check=True, timeout=300, env=_on_platform(os.environ))
    merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).state_dict()
    saved = _weights(job, 0)
    return sum(not torch.equal(merged[name].cpu(), value.bfloat16()) for name, value in saved.items())


def _weights(job: Job, step: int) -> dict[str, torch.Tensor]:
    path = job.folder / f"global_step_{step}/actor/model_world_size_1_rank_0.pt"
    saved = torch.load(path, weights_only=False, map_location="cpu")
    return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in saved.items()}


def _on_platform(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the platform of this machine, which tests set to the CPU, or one that is asked for."""
    platform = {"VERL_PLATFORM": PLATFORM} if PLATFORM else {}
    return {key: value for key, value in environment.items() if key != "VERL_PLATFORM"} | platform


def _start(folder: Path, method: str, overrides: Sequence[str]) -> subprocess.Popen[str]:
    recipe = ["bash", str(ROOT / "recipes/household/run.sh"), *SMALL, *METHODS[method], *overrides]
    return subprocess.Popen(
        [*recipe, "trainer.max_actor_ckpt_to_keep=null"],
        # The judge reads the files of one worker.
        env=_on_platform(recipe_environment(folder, method) | {"GPUS": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class _Memory:
    """Samples the memory that is used on the card, by all of its processes, in a thread of its own."""

    def __init__(self) -> None:
        self.is_training = False
        self.least_training, self.most = float("nan"), float("nan")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        used = _used_memory()
        while used is not None and not self._stop.wait(SAMPLE_SECONDS):
            value = float(used())
            self.most = value if self.most != self.most else max(self.most, value)
            if self.is_training:
                least = self.least_training
                self.least_training = value if least != least else min(least, value)


def _used_memory() -> Callable[[], int] | None:
    """Return a function that returns the bytes used on the first card that is visible, or None where there is none."""
    if not torch.cuda.is_available():
        return None

    def used() -> int:
        free, total = torch.cuda.mem_get_info(0)
        return total - free

    return used


def _note_training(line: str, memory: _Memory) -> None:
    """Note when a stage begins and ends, by the plugin's own lines."""
    said = read_plugin_line(line)
    for stage in ("world_model", "imitation") if said is not None else ():
        if said.text.startswith(f"{stage} begins"):
            memory.is_training = True
        elif said.text.startswith(f"{stage}: "):
            memory.is_training = False
