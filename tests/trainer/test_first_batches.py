"""In every trainer mode, GRPO's first batches are asked of servers that have the weights of the last stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from support.job_checks import CPU, MODEL
from support.mid_training_runs import Silent
from support.recording_stages import RESULTS, CallRecorder
from transformers import AutoTokenizer
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_separate_async import HybridEngineMode

import verl_ee.plugin  # makes the flag known, as verl does
import verl_ee.trainer.trainer_modes  # noqa: F401  (registers them)
from verl_ee.config.group import TRAINER_MODES
from verl_ee.objectives.files.row_files import write_rows
from verl_ee.objectives.rows import Row


class Workers(CallRecorder):
    """verl's group of one worker."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(calls, RESULTS)
        self._dispatch_info = {"actor": [0]}


class Named(CallRecorder):
    """A part of verl's trainer, whose calls are noted with its name."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__(calls)
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return super().__getattr__(f"{self._name} {method}")


def trainer_of(mode: str, folder: Path, calls: list[str], *overrides: str) -> Any:
    """Return the trainer of a job with one stage, before its first step; what verl builds elsewhere notes its calls."""

    class Trainer(get_trainer_cls(TRAINER_MODES[mode])):  # type: ignore[misc]
        def _save_checkpoint(self) -> None:
            calls.append("save")

        def _add_prompts_to_generate(self, *_: Any, **__: Any) -> None:
            calls.append("first batches")

        def add_replicas_to_balancer(self) -> None:
            """verl's balancer is an actor of Ray."""

        def remove_replicas_from_balancer(self) -> None:
            """verl's balancer is an actor of Ray."""

    prompt = ({"role": "user", "content": "What now?"},)
    write_rows(folder / "rows.jsonl", [Row(prompt, "Go on.", "imitation")])
    job = [
        *("+early_experience=imitation", f"early_experience.examples={folder}/rows.jsonl"),
        "early_experience.evaluate=false",
        f"actor_rollout_ref.model.path={MODEL}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        *("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"),
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={folder}/run",
        f"trainer.v1.trainer_mode={TRAINER_MODES[mode]}",
        "data.train_batch_size=1024",
        *("actor_rollout_ref.actor.ppo_mini_batch_size=256", "trainer.v1.separate_async.parameter_sync_step=4"),
        *CPU,
        *overrides,
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", job)
    trainer = Trainer(config)
    trainer.tokenizer = AutoTokenizer.from_pretrained(MODEL)
    trainer.actor_rollout_wg = Workers(calls)
    trainer.checkpoint_manager = Named("shared", calls)
    trainer.logger = Silent()
    trainer.global_steps, trainer.total_training_steps, trainer.ref_in_actor = 1, 2, False
    if mode == "separate_async":
        trainer.standalone_checkpoint_manager = Named("standalone", calls)
        has_shared = config.actor_rollout_ref.hybrid_engine
        trainer.current_mode = HybridEngineMode.ROLLOUT if has_shared else HybridEngineMode.TRAINER
    return trainer


@pytest.mark.parametrize(
    ("mode", "overrides", "servers"),
    [
        ("sync", [], ["shared"]),
        ("colocate_async", [], ["shared"]),
        ("separate_async", [], ["standalone", "shared"]),
        ("separate_async", ["actor_rollout_ref.hybrid_engine=False"], ["standalone"]),
    ],
    ids=["sync", "colocate_async", "separate_async", "separate_async-without-shared-servers"],
)
def test_the_first_batches_are_asked_of_servers_with_the_weights_of_the_stage(
    mode: str, overrides: list[str], servers: list[str], tmp_path: Path
) -> None:
    calls: list[str] = []
    trainer_of(mode, tmp_path, calls, *overrides).on_train_begin()
    trained = len(calls) - calls[::-1].index("update_supervised")
    after = calls[trained:]
    updates = [call for call in after if call.endswith(" update_weights")]
    assert updates == [f"{name} update_weights" for name in servers]
    if "first batches" in calls:
        assert calls.index("first batches") > trained + after.index(updates[-1])
    assert ("first batches" in calls) == (mode != "sync")
    # Nobody is asked to sleep or to wake who is not there.
    named = {call.split()[0] for call in calls if call.startswith(("shared ", "standalone "))}
    assert named == set(servers)
