"""Two stages of 20,000 rows, killed within each and between them: the next process goes on, with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.encoded_stages import ROWS, STAGES
from support.jobs import ROOT

from verl_ee.objectives.files.example_files import PART_ROWS

pytestmark = pytest.mark.slow
PARTS = -(-ROWS // PART_ROWS)
"""Parts of the first stage."""


def encode(folder: Path, parts: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "support.encoded_stages", str(folder), str(parts)]
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_killed_stages_end_with_the_bytes_of_whole_ones(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole", 10 * PARTS)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert [line.split()[:2] for line in whole.stdout.splitlines()] == [[stage, str(ROWS)] for stage in STAGES]
    kept = 0
    # Within the first stage twice, between the two, and within the second.
    for parts in (3, 7, PARTS - 10, 4):
        killed = encode(tmp_path / "killed", parts)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        files = list((tmp_path / "killed").rglob("*.arrow"))
        assert len(files) == kept + parts
        kept = len(files)
    assert (tmp_path / "killed/world_model/examples.json").exists()
    assert not (tmp_path / "killed/reflection/examples.json").exists()
    done = encode(tmp_path / "killed", 10 * PARTS)
    assert done.stdout == whole.stdout
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
