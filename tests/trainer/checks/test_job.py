"""Bad input ends before Ray starts, with one message and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import hydra
import pytest
import torch
from omegaconf import OmegaConf
from support.job_checks import MODEL, check, refusal

from verl_ee.config import early_experience_of
from verl_ee.experience.files.atomic import write_json
from verl_ee.run.folder import RunFolder
from verl_ee.run.identity import identity_of
from verl_ee.run.state import HAND_OVER
from verl_ee.trainer import hydra_callback
from verl_ee.trainer.checkpoints import TRACKER
from verl_ee.trainer.checks import job


def test_a_good_job_passes(overrides: list[str]) -> None:
    check(overrides)


def test_an_adapter_that_vllms_cpu_build_cannot_take_is_refused(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = [*overrides, "actor_rollout_ref.model.lora_rank=8"]
    monkeypatch.setattr(job, "active", lambda: False)
    check(lora)
    monkeypatch.setattr(job, "active", lambda: True)
    assert "Add actor_rollout_ref.model.lora.merge=True" in refusal(lora)
    check([*lora, "actor_rollout_ref.model.lora.merge=True"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["early_experience.colect=1"], ["early_experience.colect", "Did you mean 'collect'"]),
        (
            ["early_experience.collect.world_model.k=-1"],
            ["early_experience.collect.world_model.k=-1", "greater than or equal to 0"],
        ),
        (["early_experience.collect.world_model.k=many"], ["early_experience.collect.world_model.k='many'", "integer"]),
        (["early_experience.collect.world_model.alternatives=all"], ["alternatives='all'", "'admissible'"]),
        (["early_experience.environment.id=verl_ee/Houshold-v0"], ["verl_ee/Houshold-v0", "Did you mean"]),
        (["early_experience.experts=/nowhere/experts.jsonl"], ["/nowhere/experts.jsonl", "cannot be read", "record"]),
        (["trainer.use_v1=False"], ["trainer.use_v1=False", "Remove"]),
        (["algorithm.adv_estimator=gae", "critic.enable=True"], ["adv_estimator='gae'", "critic", "grpo"]),
        (
            ["trainer.v1.trainer_mode=colocate_async"],
            ["trainer_mode='colocate_async'", "early_experience_colocate_async"],
        ),
        (["actor_rollout_ref.model.path=/nowhere/model"], ["/nowhere/model", "does not exist"]),
        (
            ["actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.ref.fsdp_config.fsdp_size=2"],
            ["actor_rollout_ref.ref.fsdp_config.fsdp_size=2", "hand_over.reference=base"],
        ),
        (
            ["+early_experience.stages.store={objectives: [imitation], epochs: 1, lr: 1, batch_size: 1}"],
            ["stages.store"],
        ),
        (["early_experience.hand_over.optimiser=keep"], ["hand_over.optimiser", "Did you mean 'optimizer'"]),
        (["+early_experience.collect.wrold_model.k=4"], ["collect.wrold_model", "Did you mean 'world_model'"]),
        (["+early_experience.stores.wordl_model=store"], ["stores.wordl_model", "Did you mean 'world_model'"]),
        (
            [f"actor_rollout_ref.actor.checkpoint.{key}" for key in ("save_contents=[model]", "load_contents=[extra]")],
            ["save_contents=['model'] lacks extra", "Save what is loaded"],
        ),
        (["trainer.resume_mode=atuo"], ["trainer.resume_mode='atuo'", "Did you mean 'auto'"]),
        (
            [
                *("actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.strategy=megatron"),
                *("actor_rollout_ref.model.lora.rank=8", "actor_rollout_ref.model.lora.merge=True"),
            ],
            ["adapter at hand-over cannot be GRPO's reference", "hand_over.reference=base"],
        ),
    ],
)
def test_refused(overrides: list[str], change: list[str], words: list[str]) -> None:
    message = refusal([*overrides, *change])
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Silent", ["alternatives='admissible'", "lists no admissible actions"]),
        ("Broken", ["own/Own-v0 cannot be made", "no licence"]),
        ("Unready", ["own/Own-v0 cannot be reset to task", "no server"]),
    ],
)
def test_environment_that_cannot_be_used(overrides: list[str], tmp_path: Path, name: str, words: list[str]) -> None:
    gymnasium.register("own/Own-v0", entry_point=globals()[name])
    try:
        lines = (tmp_path / "experts.jsonl").read_text()
        row = json.loads(lines)
        row["environment"] = {"id": "own/Own-v0", "version": "1", "kwargs": {}}
        (tmp_path / "experts.jsonl").write_text(json.dumps(row) + "\n")
        message = refusal([*overrides, "early_experience.environment.id=own/Own-v0"])
    finally:
        del gymnasium.registry["own/Own-v0"]
    for word in words:
        assert word in message


def test_a_module_that_fails_to_register_its_environment(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_house.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal([*overrides, "early_experience.environment.id=own_house:own/Own-v0"])
    assert "own_house" in message
    assert "ZeroDivisionError" in message


def test_a_check_that_fails_itself_stops_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hydra_callback, "check_job", lambda _: 1 / 0)
    with pytest.raises(SystemExit):
        hydra_callback.FlagCallback().on_job_start(OmegaConf.create({}))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ConfigError: This job cannot be checked before it starts: ZeroDivisionError")


def test_model_without_tokenizer_or_chat_template(overrides: list[str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(MODEL / "config.json", bare)
    message = refusal([*overrides, f"actor_rollout_ref.model.path={bare}"])
    assert "no tokenizer" in message
    assert str(bare) in message
    untemplated = tmp_path / "untemplated"
    shutil.copytree(MODEL, untemplated)
    (untemplated / "chat_template.jinja").unlink()
    message = refusal([*overrides, f"actor_rollout_ref.model.path={untemplated}"])
    assert "no chat template" in message


def test_folder_of_another_run(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run/global_step_3").mkdir(parents=True)
    message = refusal(overrides)
    assert "without early experience" in message
    assert str(tmp_path / "run") in message
    write_json(tmp_path / "run/early_experience/state.json", {"schema": 9, "identity": {}, "finished": []})
    assert "schema 9" in refusal(overrides)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    early = early_experience_of(config)
    other = identity_of(config, early) | {"early_experience.stages.imitation.lr": 1.0}
    (tmp_path / "run/early_experience/state.json").unlink()
    RunFolder(tmp_path / "run", other).finish("collect/world_model")
    message = refusal(overrides)
    assert "other settings or files" in message
    assert f"early_experience.stages.imitation.lr: 1.0 then, {early.stages['imitation'].lr} now" in message
    assert "early_experience.resume=force" in message
    check([*overrides, "early_experience.resume=force"])
    assert "resume_mode='disable'" in refusal(
        [*overrides, "early_experience.resume=force", "trainer.resume_mode=disable"]
    )


def test_folder_that_a_job_works_in(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_ee.run.lock.LOCK_SECONDS", 0)
    with RunFolder(tmp_path / "run").hold():
        message = refusal(overrides)
    assert f"{tmp_path}/run' is in use by another job (process {os.getpid()} on " in message
    check(overrides)


def test_folder_that_cannot_be_written(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal([*overrides, f"trainer.default_local_dir={tmp_path}/file/run"])
    assert f"trainer.default_local_dir='{tmp_path}/file/run' cannot be written" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "early_experience.collect.world_model.kk=3",
            ["ConfigError: Unknown key early_experience.collect.world_model.kk=3", "Did you mean 'k'"],
        ),
        ("+early_experience=iwn", ["early_experience/iwn", "imitation", "iwm"]),
    ],
)
def test_the_command_ends_before_ray(overrides: list[str], change: str, words: list[str], tmp_path: Path) -> None:
    command = overrides[1:] if change.startswith("+") else overrides
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *command, change],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert "Started a local Ray instance" not in done.stdout + done.stderr
    if change.startswith("early"):
        assert done.stderr.strip().splitlines()[-1].startswith("ConfigError: ")


class Silent(gymnasium.Env[str, str]):
    """Lists no actions."""

    version = "1"
    observation_space = gymnasium.spaces.Text(10)
    action_space = gymnasium.spaces.Text(10)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        return "hello", {"task": "be silent"}


class Broken(Silent):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Unready(Silent):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        raise ConnectionError("no server")


def test_a_finished_run_without_verls_tracker_does_not_begin_again(overrides: list[str], tmp_path: Path) -> None:
    early = check(overrides)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    folder = RunFolder(tmp_path / "run", identity_of(config, early))
    folder.finish("world_model", "imitation", HAND_OVER)
    message = refusal(overrides)
    assert f"{tmp_path}/run/latest_checkpointed_iteration.txt is missing" in message
    assert "0 for the hand-over" in message


def test_a_run_that_saves_its_weights_alone_goes_on_from_them(overrides: list[str], tmp_path: Path) -> None:
    key = "actor_rollout_ref.actor.checkpoint"
    alone = [*overrides, "trainer.n_gpus_per_node=1", f"{key}.save_contents=[model]", f"{key}.load_contents=[model]"]
    early = check(alone)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", alone)
    folder = RunFolder(tmp_path / "run", identity_of(config, early))
    folder.finish("world_model", "imitation", HAND_OVER)
    (folder.root / TRACKER).write_text("3")
    actor = folder.grpo_checkpoint(3) / "actor"
    actor.mkdir(parents=True)
    torch.save({}, actor / "model_world_size_1_rank_0.pt")
    check(alone)
    assert "optim_world_size_1_rank_0.pt is missing" in refusal([*overrides, "trainer.n_gpus_per_node=1"])
