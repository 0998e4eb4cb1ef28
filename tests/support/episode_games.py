"""Environments whose episodes go wrong on command: the action or the task says how."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy

Info = dict[str, Any]
StepReturn = tuple[str, float, bool, bool, Info]


def hang() -> None:
    threading.Event().wait()


def compute() -> None:
    """Hang without ever giving another thread its turn."""
    sum(itertools.repeat(0))


def fail() -> None:
    raise ValueError("the floor gave way")


def leave() -> None:
    os._exit(3)


def interrupt() -> None:
    sys.exit(4)


def kill() -> None:
    os.kill(os.getpid(), 9)


MISHAPS: dict[str, Callable[[], None]] = {
    function.__name__: function for function in (hang, compute, fail, leave, interrupt, kill)
}


class Mishaps(gymnasium.Env[str, str]):
    """A world that repeats each action, and in which an action that names a mishap makes it happen.

    `earn X` gives that reward, `win` ends the episode with success. A task `fail 2` makes the mishap happen at the
    first two resets to it.

    Args:
        marks: folder that gets a file named after each process in which the world was made, and one for each mishap of
            a reset. A named pipe `pipe` there is told of each mishap of a step.
        told: whether the info holds the instruction, and whether the task is solved.
        noisy: whether the world prints, and puts things into its info that are no plain data.
    """

    def __init__(self, marks: str, told: bool = True, noisy: bool = False, render_mode: str | None = None) -> None:
        self.marks, self.told, self.noisy = Path(marks), told, noisy
        self.random = f"{numpy.random.random()}"
        (self.marks / f"made {os.getpid()} {len(list(self.marks.iterdir()))}").touch()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        task = options["task"]
        mishap, _, times = task.partition(" ")
        happened = len(list(self.marks.glob(f"{mishap} *")))
        if mishap in MISHAPS and (not times or happened < int(times)):
            (self.marks / f"{mishap} {happened}").touch()
            MISHAPS[mishap]()
        return f"Task {task}, seed {seed}, {self.random}.", self.info(False)

    def step(self, action: str) -> StepReturn:
        if action in MISHAPS:
            if (self.marks / "pipe").exists():
                (self.marks / "pipe").write_text("now")
            MISHAPS[action]()
        if action == "bytes":
            return b"bytes", 0.0, False, False, {}  # type: ignore[return-value]
        if action == "half a letter":
            return "\ud83d", 0.0, False, False, {}
        if action == "shout":
            return "a door. " * 655_360, 0.0, False, False, {}
        if action == "spawn":
            child = subprocess.Popen(["sleep", "1000"])
            return f"{child.pid}", 0.0, False, False, {}
        if self.noisy:
            print('{"result": "no message"}', flush=True)
        reward = float(action.removeprefix("earn ")) if action.startswith("earn ") else float(action == "win")
        return f"You did {action!r}.", reward, action == "win", False, self.info(action == "win")

    def close(self) -> None:
        (self.marks / f"closed {os.getpid()}").touch()

    def info(self, success: bool) -> Info:
        info: Info = {"task": "Do it.", "success": success} if self.told else {}
        return info | {"self": self, "number": numpy.float32(1.0)} if self.noisy else info


class ThreadBound(gymnasium.Env[str, str]):
    """It keeps what happens in a database, whose connection belongs to the thread that has opened it."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE TABLE action (text TEXT)")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.database.execute("DELETE FROM action")
        return "An empty table.", {"task": "Fill it."}

    def step(self, action: str) -> StepReturn:
        self.database.execute("INSERT INTO action VALUES (?)", (action,))
        rows = self.database.execute("SELECT text FROM action").fetchall()
        return f"{rows}", float(len(rows)), len(rows) == 3, False, {}


gymnasium.register("test/Mishaps-v0", entry_point=Mishaps)
gymnasium.register("test/ThreadBound-v0", entry_point=ThreadBound)
MISHAPS_ID, THREAD_BOUND_ID = (f"{__name__}:test/{name}-v0" for name in ("Mishaps", "ThreadBound"))
