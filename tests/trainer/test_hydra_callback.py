"""The flag's part in the driver, in a Hydra application of its own: every way in which a job can end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from verl_ee.errors import BranchError, ConfigError, StageError, own_error

APPLICATION = """
import os, signal, sys, types

check = types.ModuleType("verl_ee.trainer.checks.job")
check.check_job = lambda config: {check}
sys.modules[check.__name__] = check

import hydra
from omegaconf import OmegaConf
from verl_ee.errors import ConfigError, StageError

def fail(error):
    raise error

@hydra.main(version_base=None, config_path=None)
def main(config):
    print("noise")
    print("verl_ee | INFO | a stage", file=sys.stderr)
    {work}

main()
"""
BEGIN = "the job begins: Ray, workers and rollout servers start"
FLAG = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "+hydra.callbacks.early_experience._target_=verl_ee.trainer.hydra_callback.FlagCallback",
    "+trainer.default_local_dir=run",
)
OF_RAY = (
    "from ray.exceptions import RayTaskError; "
    "cause = StageError('Stage 2 failed: no.'); "
    "fail(RayTaskError('run', 'in the actor:\\nline 7 of the actor', cause).as_instanceof_cause())"
)
STAGE_ERROR = "fail(StageError('Stage 2 failed: no.'))"


def run(
    folder: Path, console: str, work: str = "pass", check: str = "None"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a job, and return it and the lines of its log."""
    code = APPLICATION.replace("{work}", work).replace("{check}", check)
    command = [sys.executable, "-c", code, *FLAG, f"+early_experience.console={console}"]
    job = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    log = folder / "run" / "job.log"
    return job, log.read_text().splitlines() if log.exists() else []


def test_quiet_a_job_that_ends_well(tmp_path: Path) -> None:
    job, log = run(tmp_path, "quiet")
    assert (job.returncode, job.stdout) == (0, "")
    assert job.stderr.splitlines() == [f"everything else: {tmp_path}/run/job.log", BEGIN, "a stage"]
    assert log == [f"verl_ee | INFO | {BEGIN}", "noise", "verl_ee | INFO | a stage"]


def test_quiet_an_error_of_ours_comes_last_behind_the_end_of_the_log(tmp_path: Path) -> None:
    job, _ = run(tmp_path, "quiet", STAGE_ERROR)
    assert (job.returncode, job.stdout) == (1, "")
    assert job.stderr.splitlines()[1:] == [
        BEGIN,
        "a stage",
        f"the last lines of {tmp_path}/run/job.log:",
        f"  verl_ee | INFO | {BEGIN}",
        "  noise",
        "  verl_ee | INFO | a stage",
        "",
        "StageError: Stage 2 failed: no.",
    ]


def test_quiet_another_error_shows_the_end_of_its_traceback(tmp_path: Path) -> None:
    job, log = run(tmp_path, "quiet", "fail(ValueError('no such thing'))")
    assert job.returncode == 1
    assert job.stderr.splitlines()[-1] == "  ValueError: no such thing"
    assert "Traceback (most recent call last):" in log
    assert log[-1] == "ValueError: no such thing"


def test_quiet_an_interrupted_job_gives_the_console_back(tmp_path: Path) -> None:
    # A shell without job control starts what runs in the background with SIGINT ignored, and that is inherited.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT)"
    job, log = run(tmp_path, "quiet", interrupt)
    assert job.returncode != 0
    assert job.stderr.splitlines()[-1] == "  KeyboardInterrupt"
    assert log[-1] == "KeyboardInterrupt"


def test_quiet_a_job_that_exits_keeps_its_status(tmp_path: Path) -> None:
    job, _ = run(tmp_path, "quiet", "raise SystemExit(7)")
    assert job.returncode == 7
    assert job.stderr.splitlines()[2:4] == ["a stage", f"the last lines of {tmp_path}/run/job.log:"]


@pytest.mark.parametrize("console", ["full", "quiet"])
def test_a_refused_job_ends_before_anything_is_redirected(tmp_path: Path, console: str) -> None:
    job, log = run(tmp_path, console, check="fail(ConfigError('not this'))")
    assert job.returncode == 1
    assert job.stderr.splitlines() == ["", "ConfigError: not this"]
    assert (job.stdout, log) == ("", [])


def test_full_everything_is_on_the_console(tmp_path: Path) -> None:
    job, log = run(tmp_path, "full", STAGE_ERROR)
    assert (job.returncode, job.stdout) == (1, "noise\n")
    assert job.stderr.splitlines() == ["verl_ee | INFO | a stage", "", "StageError: Stage 2 failed: no."]
    assert log == []


@pytest.mark.parametrize("console", ["full", "quiet"])
def test_an_error_of_ours_in_an_actor_is_one_line_behind_its_traceback(tmp_path: Path, console: str) -> None:
    job, log = run(tmp_path, console, OF_RAY)
    assert job.returncode == 1
    assert job.stderr.splitlines()[-2:] == ["", "StageError: Stage 2 failed: no."]
    everything = log if console == "quiet" else job.stderr.splitlines()
    assert "line 7 of the actor" in everything
    assert ("  line 7 of the actor" in job.stderr.splitlines()) == (console == "quiet")


def test_full_another_error_is_left_to_hydra(tmp_path: Path) -> None:
    job, _ = run(tmp_path, "full", "fail(ValueError('no such thing'))")
    assert job.returncode == 1
    assert "ValueError: no such thing" in job.stderr
    assert "HYDRA_FULL_ERROR=1" in job.stderr


def test_an_error_of_ours_is_recognised_wherever_it_lies() -> None:

    error, wrapper, cause = StageError("inner"), RuntimeError("outer"), RuntimeError("of Ray")
    wrapper.__cause__ = error
    cause.cause = wrapper  # type: ignore[attr-defined]
    assert own_error(cause) is error
    assert own_error(BranchError("itself")) is not None
    assert own_error(ConfigError) is None
    of_ray = RayTaskError("run", "Traceback of the actor", error).as_instanceof_cause()
    assert isinstance(of_ray, StageError)
    assert own_error(of_ray) is error
    circle = RuntimeError("circle")
    circle.__cause__ = circle
    assert own_error(circle) is None
