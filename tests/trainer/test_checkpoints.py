"""Checkpoints that cannot be loaded or written end a job with one message, before anything is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from support.actors import PAIRS
from support.jobs import ROOT

from verl_ee.errors import EarlyExperienceError
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import StageProgress
from verl_ee.trainer import checkpoints
from verl_ee.trainer.checkpoints import check_actor, check_space, kept_by_grpo, resumed_from
from verl_ee.trainer.mid_training import MidTraining, save_failed

MODEL = ROOT / "examples/tiny_base/model"


def job(root: Path, **trainer: Any) -> DictConfig:
    settings = {"resume_mode": "auto", "resume_from_path": None, "n_gpus_per_node": 2, "nnodes": 1, **trainer}
    actor = {"strategy": "fsdp2"}
    return OmegaConf.create(
        {"trainer": settings, "actor_rollout_ref": {"actor": actor, "model": {"path": str(MODEL)}}},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two workers with its hand-over and a step of GRPO."""
    for step in (0, 3):
        actor = tmp_path / f"global_step_{step}/actor"
        (actor / "huggingface").mkdir(parents=True)
        shutil.copy(MODEL / "config.json", actor / "huggingface")
        for rank in range(2):
            for part in checkpoints.SHARDS.values():
                torch.save({"a": torch.zeros(1000)}, actor / f"{part}_world_size_2_rank_{rank}.pt")
    (tmp_path / checkpoints.TRACKER).write_text("3")
    return tmp_path


def refusal(action: Any) -> str:
    with pytest.raises(EarlyExperienceError) as caught:
        action()
    return str(caught.value)


def test_the_newest_checkpoint_is_resumed_from(run: Path) -> None:
    assert resumed_from(job(run), run) == run / "global_step_3"
    check_actor(run / "global_step_3/actor", job(run))
    assert resumed_from(job(run, resume_mode="disable"), run) is None
    named = job(run, resume_mode="resume_path", resume_from_path=str(run / "global_step_0"))
    assert resumed_from(named, run / "elsewhere") == run / "global_step_0"


def test_a_tracker_that_points_to_a_missing_folder(run: Path) -> None:
    (run / checkpoints.TRACKER).write_text("7")
    message = refusal(lambda: resumed_from(job(run), run))
    assert "names global_step_7, which is missing (there: global_step_0, global_step_3)" in message
    # A disk that ran full while verl wrote it.
    (run / checkpoints.TRACKER).write_text("")
    assert "should hold the number of the newest checkpoint, not ''" in refusal(lambda: resumed_from(job(run), run))


def test_a_path_that_is_no_checkpoint(run: Path) -> None:
    named = job(run, resume_mode="resume_path", resume_from_path=str(run / "none"))
    assert f"trainer.resume_from_path='{run}/none' is no checkpoint folder" in refusal(lambda: resumed_from(named, run))


def test_a_truncated_shard(run: Path) -> None:
    shard = run / "global_step_3/actor/optim_world_size_2_rank_1.pt"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert refusal(lambda: check_actor(shard.parent, job(run))).startswith(f"{shard} is cut off")


def test_a_missing_rank_file(run: Path) -> None:
    shard = run / "global_step_3/actor/model_world_size_2_rank_1.pt"
    shard.unlink()
    message = refusal(lambda: check_actor(shard.parent, job(run)))
    assert message.startswith(f"{shard} is missing; there: model_world_size_2_rank_0.pt")
    message = refusal(lambda: check_actor(run / "global_step_0/actor", job(run, n_gpus_per_node=4)))
    assert "this job has 4" in message
    assert "verl.model_merger" in message


def test_what_is_not_loaded_need_not_be_there(run: Path) -> None:
    for shard in (run / "global_step_3/actor").glob("[oe]*.pt"):
        shard.unlink()
    check_actor(run / "global_step_3/actor", job(run), ["model"])
    assert "optim_world_size_2_rank_0.pt is missing" in refusal(
        lambda: check_actor(run / "global_step_3/actor", job(run), ["model", "optimizer"])
    )


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"save_contents": ["model"]}, "lacks optimizer, extra"),
        ({"save_contents": ["hf_model"], "load_contents": ["hf_model"]}, "lacks model"),
        ({"async_save": True}, "async_save=True"),
    ],
)
def test_contents_that_could_not_be_loaded_again_are_refused(contents: dict[str, Any], words: str) -> None:
    everything = {"save_contents": list(checkpoints.SHARDS), "load_contents": list(checkpoints.SHARDS)}

    def with_contents(values: dict[str, Any]) -> DictConfig:
        return OmegaConf.create({"actor_rollout_ref": {"actor": {"checkpoint": everything | values}}})

    checkpoints.check_contents(with_contents({}))
    checkpoints.check_contents(with_contents({"save_contents": ["model"], "load_contents": ["model"]}))
    assert words in refusal(lambda: checkpoints.check_contents(with_contents(contents)))


def test_a_checkpoint_of_another_model(run: Path) -> None:
    path = run / "global_step_3/actor/huggingface/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 7}))
    message = refusal(lambda: check_actor(path.parents[1], job(run)))
    assert "checkpoint of another model: hidden_size is 7 there and" in message


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, 1, 3, 2)
    message = refusal(lambda: check_space(tmp_path, free // 4, 3, 2))
    assert "3 of mid-training and 2 of GRPO" in message
    assert "trainer.max_actor_ckpt_to_keep" in message


@pytest.mark.parametrize(
    ("freq", "keep", "steps", "kept"), [(-1, None, 9, 0), (3, None, 9, 3), (4, None, 9, 3), (1, 1, 9, 2), (1, 3, 9, 3)]
)
def test_checkpoints_that_grpo_keeps(freq: int, keep: int | None, steps: int, kept: int) -> None:
    assert kept_by_grpo({"save_freq": freq, "max_actor_ckpt_to_keep": keep}, steps) == kept


def test_a_disk_that_runs_full_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    class Full:
        def save_stage(self, path: str, step: int) -> None:
            Path(path).mkdir(parents=True)
            (Path(path) / "model_world_size_1_rank_0.pt").write_bytes(b"half")
            raise RuntimeError("worker failed:\n  OSError: [Errno 28] No space left on device")

    folder = RunFolder(tmp_path)
    before = folder.checkpoint("imitation", 2)
    before.mkdir(parents=True)
    folder.reach("imitation", StageProgress(2, 6, "hash"))
    training = MidTraining(Full(), folder, None, 0, PAIRS, 0)  # type: ignore[arg-type]
    message = refusal(lambda: training._save("imitation", StageProgress(4, 6, "hash")))
    assert "early_experience/imitation/global_step_4/actor failed: OSError: [Errno 28] No space left" in message
    assert "The checkpoint before it is unharmed" in message
    assert before.is_dir()
    assert folder.trained()["imitation"].step == 2


def test_the_last_checkpoint_that_is_left_is_never_removed(run: Path) -> None:
    assert checkpoints.older_is_kept(run, 6)
    # verl has saved the actor of step 6, removed that of step 3, and then failed.
    shutil.rmtree(run / "global_step_3/actor")
    assert not checkpoints.older_is_kept(run, 6)
    message = str(save_failed(run / "global_step_6/actor", OSError("full"), older_kept=False))
    assert f"write 6 into {run / checkpoints.TRACKER}, then repeat the command" in message
    for broken in ("", "6"):
        (run / checkpoints.TRACKER).write_text(broken)
        assert not checkpoints.older_is_kept(run, 6)
    (run / checkpoints.TRACKER).unlink()
    assert checkpoints.older_is_kept(run, 0)
