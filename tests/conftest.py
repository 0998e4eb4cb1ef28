"""Fixtures that many tests share: a small job, a job that passes every check, and a Ray for each module in need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports verl: tests run on the CPU, also on a machine with GPUs. Those of tests/gpu take it away.
os.environ["VERL_PLATFORM"] = "cpu"

import pytest
from support.actor_rows import Rows, household_rows
from support.jobs import ROOT, Job, run_recipe


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """World model, imitation, two steps of GRPO with a KL reference, one worker."""
    folder = tmp_path_factory.mktemp("job")
    done = run_recipe(folder, f"trainer.validation_data_dir={folder}/validation")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    return Job(folder, output)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of four logical CPUs, whose workers find the modules of the tests."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """The command line of a job that passes every check."""
    # Imports verl, which most tests do without.
    from support.job_checks import good_job

    return good_job(tmp_path)


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Five examples of each objective, of different lengths."""
    return household_rows()
