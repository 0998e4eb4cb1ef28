"""The quiet console: who gets which line, and a log that is complete however the process ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ee.errors import ConfigError
from verl_ee.run.console import TAIL_LINES, QuietConsole

BEGIN = """
import os, signal, subprocess, sys
from pathlib import Path
from verl_ee.run.console import QuietConsole

def ours(text, level="INFO"):
    print(f"\\x1b[36m(TaskRunnerV1 pid=7)\\x1b[0m verl_ee | {level} | {text}", file=sys.stderr, flush=True)

console = QuietConsole(Path(sys.argv[1]))
print("noise of python")
ours("collect begins")
ours("collect:  50%|#####     | 1/2", "PROGRESS")
subprocess.run(["sh", "-c", "echo noise of a child; echo noise of its errors >&2"])
ours("one state lost", "WARNING")
os.write(2, b"half a line")
"""
LOGGED = [
    "noise of python",
    "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m verl_ee | INFO | collect begins",
    "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m verl_ee | PROGRESS | collect:  50%|#####     | 1/2",
    "noise of a child",
    "noise of its errors",
    "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m verl_ee | WARNING | one state lost",
]
SHOWN = ["collect begins", "warning: one state lost"]


def run(log: Path, end: str) -> subprocess.CompletedProcess[str]:
    """Run a job that writes noise and lines of the plugin, and ends in some way."""
    command = [sys.executable, "-c", BEGIN + end, str(log)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_console_gets_the_plugins_lines_and_the_log_gets_everything(tmp_path: Path) -> None:
    log = tmp_path / "run" / "job.log"
    job = run(log, "console.close(); print('after'); print('errors after', file=sys.stderr)")
    assert job.returncode == 0
    assert job.stderr.splitlines() == [f"everything else: {log}", *SHOWN, "errors after"]
    assert job.stdout == "after\n"
    assert log.read_text().splitlines() == [*LOGGED, "half a line"]


def test_a_second_close_does_nothing(tmp_path: Path) -> None:
    job = run(tmp_path / "job.log", "console.close(); console.close(failed=True)")
    assert job.stderr.splitlines()[1:] == SHOWN


def test_a_failed_job_shows_the_last_lines_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("an earlier attempt\n")
    job = run(log, "console.close(failed=True)")
    assert log.read_text().splitlines() == ["an earlier attempt", *LOGGED, "half a line"]
    header = f"the last lines of {log}:"
    tail = job.stderr.splitlines()[3:]
    assert tail[0] == header
    assert tail[1:] == [
        f"  {line.replace('[36m', '').replace('[0m', '').replace(chr(27), '')}" for line in [*LOGGED, "half a line"]
    ]


def test_of_a_long_log_only_the_end_is_shown(tmp_path: Path) -> None:
    job = run(tmp_path / "job.log", "print(); [print('row', i) for i in range(1000)]; console.close(failed=True)")
    tail = job.stderr.splitlines()[4:]
    assert tail == [f"  row {index}" for index in range(1000 - TAIL_LINES, 1000)]


def test_a_bar_in_the_tail_is_its_last_state(tmp_path: Path) -> None:
    job = run(tmp_path / "job.log", "print('\\n 0%\\r 50%\\r100%'); console.close(failed=True)")
    assert job.stderr.splitlines()[-1] == "  100%"


def test_a_killed_job_leaves_a_complete_log_and_does_not_hang(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    end = "print(); child = subprocess.Popen(['sleep', '300']); print(child.pid); os.kill(os.getpid(), signal.SIGKILL)"
    job = run(log, end)
    *lines, child = log.read_text().splitlines()
    os.kill(int(child), signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    assert lines == [*LOGGED, "half a line"]


def test_a_job_that_exits_without_closing_leaves_a_complete_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert run(log, "raise SystemExit(3)").returncode == 3
    assert log.read_text().splitlines() == [*LOGGED, "half a line"]


def test_a_job_goes_on_when_nobody_reads_its_console(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    reader, writer = os.pipe()
    os.close(reader)
    end = "print(); [ours(f'line {i}') for i in range(9)]; console.close(); raise SystemExit(5)"
    job = subprocess.run([sys.executable, "-c", BEGIN + end, str(log)], stderr=writer, timeout=60)
    os.close(writer)
    assert job.returncode == 5
    assert log.read_text().splitlines()[-1].endswith("line 8")


def test_in_a_terminal_a_bar_is_drawn_over_the_one_before(tmp_path: Path) -> None:
    end = """
os.write(2, b"\\n")
ours("collect: 100%|##########| 2/2", "PROGRESS")
ours("a bar that is longer than the line of the terminal" * 3, "PROGRESS")
ours("collect: 2 states")
console.close()
"""
    log = tmp_path / "job.log"
    screen, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", BEGIN + end, str(log)], stdout=terminal, stderr=terminal) as job:
        os.close(terminal)
        written = read_screen(screen)
    assert job.returncode == 0
    clear = "\r\x1b[K"
    long_bar = ("a bar that is longer than the line of the terminal" * 3)[:79]
    assert written.replace("\r\n", "\n") == (
        f"everything else: {log}\ncollect begins\n{clear}collect:  50%|#####     | 1/2{clear}warning: one state lost\n"
        f"{clear}collect: 100%|##########| 2/2{clear}{long_bar}{clear}collect: 2 states\n"
    )


def read_screen(screen: int) -> str:
    """Everything that is written to a pseudo-terminal until its other side is closed."""
    data = b""
    try:
        while part := os.read(screen, 4096):
            data += part
    except OSError:  # how Linux reports the other side closed
        pass
    os.close(screen)
    return data.decode()


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.log").mkdir()
    with pytest.raises(
        ConfigError, match=r"console=quiet writes .*job\.log, which cannot be opened \(Is a directory\)"
    ):
        QuietConsole(tmp_path / "job.log")
