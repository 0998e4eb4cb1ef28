"""Early experience in front of each of verl's trainer modes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.job_checks import check
from support.jobs import Job, run_recipe
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1 import get_trainer_cls

import verl_ee.trainer.trainer_modes  # noqa: F401  (registers them)
from verl_ee.config.group import TRAINER_MODES
from verl_ee.trainer.actor.worker import EarlyExperienceWorker
from verl_ee.trainer.trainer import EarlyExperience


@pytest.mark.parametrize("mode", TRAINER_MODES)
def test_the_stages_come_before_verls_own_trainer(mode: str, overrides: list[str]) -> None:
    check([*overrides, f"trainer.v1.trainer_mode={TRAINER_MODES[mode]}"])
    trainer = get_trainer_cls(TRAINER_MODES[mode])
    assert trainer.verl_mode == mode
    assert trainer.__mro__.index(EarlyExperience) < trainer.__mro__.index(get_trainer_cls(mode))


def test_the_worker_of_separate_async_can_do_what_both_need() -> None:
    worker = get_trainer_cls(TRAINER_MODES["separate_async"]).worker
    order = worker.__mro__
    assert order.index(EarlyExperienceWorker) < order.index(DetachActorWorker)
    own = [name for name in vars(DetachActorWorker) if not name.startswith("__")]
    assert own
    assert all(getattr(worker, name) is getattr(DetachActorWorker, name) for name in own)


@pytest.mark.slow
def test_a_job_with_partial_rollouts(tmp_path: Path) -> None:
    done = run_recipe(tmp_path, f"trainer.v1.trainer_mode={TRAINER_MODES['colocate_async']}")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    names = [stage["name"] for stage in Job(tmp_path, output).json("summary.json")["stages"]]
    assert names == ["base", "world_model", "imitation", "grpo"]
