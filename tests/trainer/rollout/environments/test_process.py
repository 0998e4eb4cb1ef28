"""The process of an environment: it ends with the one that plays, with all that it has started, however it hangs."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.episode_games import MISHAPS_ID
from support.episode_infos import early_experience
from support.episodes import closed, made

from verl_ee.config import EarlyExperienceConfig
from verl_ee.trainer.rollout.environments.messages import EnvironmentFailedError
from verl_ee.trainer.rollout.environments.pool import EnvironmentPool
from verl_ee.trainer.rollout.environments.process import EnvironmentProcess

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for something that happens at once."""


def config(marks: Path, **keys: Any) -> EarlyExperienceConfig:
    environment = {"id": MISHAPS_ID, "kwargs": {"marks": str(marks)}}
    return early_experience(environment=environment, **keys)


def wait_for_end(pid: int) -> None:
    """Wait until a process that need not be a child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], PATIENCE)[0], f"process {pid} is still there"
    finally:
        os.close(descriptor)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_environment_answers_exactly_and_at_any_length(tmp_path: Path) -> None:
    environment = EnvironmentProcess(config(tmp_path))
    assert environment.reset("a task", 7).observation.startswith("Task a task, seed 7, ")
    action = "é \u2028 \x00\n"
    assert environment.step(action).observation == f"You did {action!r}."
    assert environment.step("shout").observation == "a door. " * 655_360
    won = environment.step("win")
    assert (won.reward, won.ended, won.success, won.valid, won.admissible_actions) == (1.0, True, True, None, None)
    environment.close()


@pytest.mark.parametrize(("action", "is_closed"), [("fail", True), ("hang", False), ("leave", False)])
def test_a_closed_environment_leaves_nothing_behind(tmp_path: Path, action: str, is_closed: bool) -> None:
    environment = EnvironmentProcess(config(tmp_path, step_timeout=3.0))
    environment.reset("a task", None)
    spawned = int(environment.step("spawn").observation)
    with pytest.raises(EnvironmentFailedError):
        environment.step(action)
    environment.close()
    wait_for_end(spawned)
    wait_for_end(*made(tmp_path))
    assert closed(tmp_path) == (made(tmp_path) if is_closed else [])


SCRIPT = """
import sys
from verl_ee.config import EarlyExperienceConfig
from verl_ee.trainer.rollout.environments.process import EnvironmentProcess
config = EarlyExperienceConfig.model_validate_json(sys.argv[1])
environments = [EnvironmentProcess(config) for _ in range(2)]
for environment in environments:
    environment.reset("a task", None)
environments[0].step("hang")
"""


def test_environments_end_with_the_process_that_plays(tmp_path: Path) -> None:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", SCRIPT, config(tmp_path).model_dump_json()]
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(command, env=variables) as player:
        assert (tmp_path / "pipe").read_text() == "now"
        player.send_signal(signal.SIGKILL)
    hanging, idle = made(tmp_path)
    wait_for_end(idle)
    wait_for_end(hanging)
    assert closed(tmp_path) == [idle]


def test_an_environment_can_be_started_after_the_fork_server_has_died(tmp_path: Path) -> None:
    first = EnvironmentProcess(config(tmp_path))
    (pid,) = made(tmp_path)
    server = parent(pid)
    os.kill(server, signal.SIGKILL)
    # A zombie of this process until somebody asks for it.
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    second = EnvironmentProcess(config(tmp_path))
    second.reset("a task", None)
    assert len(made(tmp_path)) == 2
    second.close()
    first.close()
    wait_for_end(pid)


def test_a_fork_server_without_descriptors_keeps_its_environments(tmp_path: Path) -> None:
    first = EnvironmentProcess(config(tmp_path))
    server = parent(*made(tmp_path))
    limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
    # Every descriptor below is taken, so that the server receives a request without its connection.
    lowest = min(set(range(4096)) - {int(path.name) for path in Path(f"/proc/{server}/fd").iterdir()})
    resource.prlimit(server, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    with pytest.raises(EnvironmentFailedError, match="the process of the environment has ended"):
        EnvironmentProcess(config(tmp_path))
    resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
    first.reset("a task", None)
    second = EnvironmentProcess(config(tmp_path))
    assert [parent(pid) for pid in made(tmp_path)] == [server, server]
    second.close()
    first.close()


def test_an_episode_that_is_cancelled_ends_its_environment(tmp_path: Path) -> None:
    pool = EnvironmentPool(config(tmp_path), most=1)
    os.mkfifo(tmp_path / "pipe")

    async def play() -> None:
        async with pool.episode("a task", None) as environment:
            await environment.step("hang")

    async def cancelled() -> None:
        task = asyncio.create_task(play())
        assert await asyncio.to_thread((tmp_path / "pipe").read_text) == "now"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wait_for_end(*made(tmp_path))
