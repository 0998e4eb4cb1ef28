"""The household's jobs on a GPU: plain, offloaded, with reflection, with an adapter, killed and repeated, merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gpu_jobs import record
from support.gpu_table import table, verdicts


@pytest.mark.gpu
def test_jobs_on_a_gpu(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = tmp_path_factory.mktemp("gpu")
    recording = record(folder)
    with capsys.disabled():
        print(f"\n{table(recording)}\n")
    assert all(line.holds for line in verdicts(recording)), table(recording)
