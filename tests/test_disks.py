"""A disk that runs full and one that cannot be written, with verl's real actor worker; needs the right to mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actors
import pytest
import stages
from test_actor import rows  # noqa: F401  (a fixture)

from verl_ee.errors import ConfigError
from verl_ee.trainer.run_folder import RunFolder

SMALL, LARGE = "30m", "60m"
"""A checkpoint takes 11 MB: three do not fit, five do."""


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which holds two checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)):
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def train(rows: stages.Rows, folder: Path, into: Path) -> Any:  # noqa: F811
    return actors.run("mid_train", 1, folder, script=stages.__file__, rows=rows, into=str(into), save_freq=2)[0]


def test_a_full_disk_costs_what_came_after_the_newest_checkpoint(
    rows: stages.Rows,  # noqa: F811
    disk: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(AssertionError) as caught:
        train(rows, tmp_path / "full", disk / "run")
    path = disk / "run/early_experience/imitation/global_step_4"
    assert f"verl_ee.errors.StageError: Saving {path}/actor failed: " in str(caught.value)
    assert "The checkpoint before it is unharmed: free space, then repeat the command" in str(caught.value)
    assert {name: item.step for name, item in RunFolder(disk / "run").trained().items()} == {
        "world_model": 6,
        "imitation": 2,
    }
    # What was half written is gone, so that there is room for the message.
    assert [item.name for item in path.parent.iterdir()] == ["global_step_2"]
    assert mount("-o", f"remount,size={LARGE}", str(disk))
    resumed = train(rows, tmp_path / "more", disk / "run")
    whole = train(rows, tmp_path / "whole", tmp_path / "undisturbed")
    assert resumed["state"] == whole["state"]
    assert resumed["updates"] == 4


def test_a_folder_that_cannot_be_written_is_refused(disk: Path) -> None:
    RunFolder(disk / "run").finish("collect/world_model")
    assert mount("-o", "remount,ro", str(disk))
    with pytest.raises(ConfigError, match=r"cannot be written \(Read-only file system\)\. Choose another folder"):
        RunFolder(disk / "run").check_free("auto")
