"""A disk that runs full and one that cannot be written, for real; needs the right to mount."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import actors, mid_training_runs

from verl_ee.envs.household.env import Household
from verl_ee.errors import ConfigError
from verl_ee.experience.expert_files import write_experts
from verl_ee.experience.store import BRANCHES, TRANSITIONS
from verl_ee.run.folder import RunFolder


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size a test sets."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)):
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    assert mount("-o", f"remount,size={size}", str(disk))


def train(rows: mid_training_runs.Rows, folder: Path, into: Path) -> Any:
    return actors.run(
        "mid_train", 1, folder, script=mid_training_runs.__file__, rows=rows, into=str(into), save_freq=2
    )[0]


def test_a_full_disk_costs_what_came_after_the_newest_checkpoint(
    rows: mid_training_runs.Rows,
    disk: Path,
    tmp_path: Path,
) -> None:
    # A checkpoint takes 11 MB: three do not fit, five do.
    resize(disk, "30m")
    with pytest.raises(AssertionError) as caught:
        train(rows, tmp_path / "full", disk / "run")
    path = disk / "run/early_experience/imitation/global_step_4"
    assert f"verl_ee.errors.StageError: Saving {path}/actor failed: " in str(caught.value)
    assert "The checkpoint before it is unharmed: free space, then repeat the command" in str(caught.value)
    assert {name: item.step for name, item in RunFolder(disk / "run").trained().items()} == {
        "world_model": 6,
        "imitation": 2,
    }
    # Half a checkpoint is removed, so that there is room for the message.
    assert [item.name for item in path.parent.iterdir()] == ["global_step_2"]
    resize(disk, "60m")
    resumed = train(rows, tmp_path / "more", disk / "run")
    whole = train(rows, tmp_path / "whole", tmp_path / "undisturbed")
    assert resumed["state"] == whole["state"]
    assert resumed["updates"] == 4


def test_a_folder_that_cannot_be_written_is_refused(disk: Path) -> None:
    RunFolder(disk / "run").finish("collect/world_model")
    assert mount("-o", "remount,ro", str(disk))
    with pytest.raises(ConfigError, match=r"cannot be written \(Read-only file system\)\. Choose another folder"):
        RunFolder(disk / "run").check_free("auto")


def test_a_disk_that_runs_full_while_collecting(disk: Path, tmp_path: Path) -> None:
    experts = tmp_path / "experts.jsonl"
    write_experts(experts, [Household().expert_trajectory(f"train/{index}") for index in range(20)])

    def collect(out: Path) -> subprocess.CompletedProcess[str]:
        given = ["--env", "verl_ee/Household-v0", "--experts", str(experts), "--k", "8", "--out", str(out)]
        command = [sys.executable, "-m", "verl_ee.cli", "collect", *given]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    resize(disk, "40k")
    full = collect(disk / "store")
    assert full.returncode == 1
    message = full.stderr.splitlines()[-1]
    assert message.startswith(f"WriteError: {disk}/store/")
    assert "cannot be written: No space left on device. Free space, then repeat the command" in message
    assert "Traceback" not in full.stderr
    resize(disk, "10m")
    for out in (disk / "store", tmp_path / "undisturbed"):
        done = collect(out)
        assert done.returncode == 0, done.stderr
    for name in (TRANSITIONS, BRANCHES):
        assert (disk / "store" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
