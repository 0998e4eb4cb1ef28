"""Games whose process cannot be forked, each for another reason."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.games import Game, Info, StepReturn, register


class Owner(Game):
    """A game that owns something which a forked child would share or lack.

    Args:
        what: name of a method.
        folder: a folder of its own.
        late: whether it gets it at its first step, and not at its first reset.
    """

    def __init__(self, what: str, folder: str, late: bool = False, **values: Any) -> None:
        super().__init__(**values)
        self.acquire: Callable[[], Any] = getattr(self, what)
        self.folder, self.late = Path(folder), late
        self.owned: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        if self.owned is None and not self.late:
            self.owned = self.acquire()
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepReturn:
        if self.owned is None:
            self.owned = self.acquire()
        return super().step(action)

    def socket(self) -> Any:
        return socket.socketpair()

    def file(self) -> Any:
        return (self.folder / "log").open("a")

    def subprocess(self) -> Any:
        # It ends with this process, whose end closes the pipe.
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    def thread(self) -> Any:
        thread = threading.Thread(target=threading.Event().wait, daemon=True, name="of the environment")
        thread.start()
        return thread


class Homesick(Game):
    """It shows something else in any process but the one that made it."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.home = os.getpid()

    def view(self) -> tuple[str, Info]:
        observation, info = super().view()
        return observation if os.getpid() == self.home else "Not connected.", info


class SharedMemory(Game):
    """A part of its state lies in memory that a forked child writes to as well."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.memory = mmap.mmap(-1, 8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.memory[:8] = (0).to_bytes(8, "big")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepReturn:
        self.memory[:8] = (int.from_bytes(self.memory[:8], "big") + 1).to_bytes(8, "big")
        return super().step(action)

    def view(self) -> tuple[str, Info]:
        observation, info = super().view()
        return f"{observation}, count {int.from_bytes(self.memory[:8], 'big')}", info


class SharedFile(Game):
    """A part of its state lies in a file that every step writes; none is open between two steps."""

    def __init__(self, folder: str, **values: Any) -> None:
        super().__init__(**values)
        self.state_file = Path(folder) / "state"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.state_file.write_text("")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepReturn:
        with self.state_file.open("a") as state:
            state.write(f"{action};")
        return super().step(action)

    def view(self) -> tuple[str, Info]:
        observation, info = super().view()
        return f"{observation}, done {self.state_file.read_text()}", info


register(Owner, Homesick, SharedMemory, SharedFile)
