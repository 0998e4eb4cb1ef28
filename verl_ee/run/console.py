"""The quiet console of a job: the plugin's lines in the terminal, and everything that is written in `job.log`."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError
from verl_ee.experience.progress import PluginLine, read_plugin_line

POLL_SECONDS = 0.2
CLOSE_SECONDS = 5.0
"""How long closing waits for a console that takes no more lines."""
TAIL_LINES = 20
COLUMNS = 80
"""Width of a terminal that does not tell its own."""
_STREAMS = (1, 2)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CLEAR = "\r\x1b[K"


class QuietConsole:
    """Sends the output of this process and its children to a file, and shows the plugin's lines on the console.

    The file itself stands in for both standard streams, and a thread reads it again. So no output ever waits for the
    thread, and the file is complete even if the process is killed.
    """

    def __init__(self, log: Path) -> None:
        """Redirect the standard streams.

        Args:
            log: file for the output; the output of an earlier attempt stays in it.

        Raises:
            ConfigError: if the file cannot be opened.
        """
        file = _open(log)
        self._log, self._begin = log, os.fstat(file).st_size
        self._saved = [os.dup(stream) for stream in _STREAMS]
        self._console = self._saved[1]
        self._terminal, self._bar_shown = os.isatty(self._console), False
        self._closing, self._closed = threading.Event(), False
        self._write(f"everything else: {log}\n")
        _flush()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Both streams share the file: a stream that holds lines back would put them out of order.
            sys.stdout.reconfigure(line_buffering=True)
        _point_streams_at([file, file])
        os.close(file)
        self._thread = threading.Thread(target=self._follow, name="quiet-console", daemon=True)
        self._thread.start()

    def close(self, failed: bool = False) -> None:
        """Show what is left, and give the standard streams back; a second call does nothing.

        Args:
            failed: also show the last lines that this job wrote to the log.
        """
        if self._closed:
            return
        self._closed = True
        _flush()
        _point_streams_at(self._saved)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        self._clear_bar()
        if failed:
            self._show_tail()

    def _follow(self) -> None:
        """Show the lines that are added to the log, until it has been read to its end after the console was closed."""
        rest, closing = b"", False
        with self._log.open("rb") as file:
            file.seek(self._begin)
            while not closing:
                closing = self._closing.wait(POLL_SECONDS)
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    self._show(read_plugin_line(_plain(line)))
        self._show(read_plugin_line(_plain(rest)))

    def _show(self, line: PluginLine | None) -> None:
        if line is None:
            return
        if line.level == "PROGRESS":
            self._show_bar(line.text)
            return
        self._clear_bar()
        self._write(f"{line.text}\n" if line.level == "INFO" else f"{line.level.lower()}: {line.text}\n")

    def _show_bar(self, text: str) -> None:
        """Draw a progress bar over the one before it; a console that is no terminal gets none."""
        if self._terminal:
            columns = COLUMNS
            with suppress(OSError):
                columns = os.get_terminal_size(self._console).columns or COLUMNS
            self._write(f"{_CLEAR}{text[: columns - 1]}")
            self._bar_shown = True

    def _clear_bar(self) -> None:
        if self._bar_shown:
            self._write(_CLEAR)
            self._bar_shown = False

    def _show_tail(self) -> None:
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._begin)
            lines = deque(file, TAIL_LINES)
            self._write(f"the last lines of {self._log}:\n")
            for line in lines:
                self._write(f"  {_plain(line)}\n")

    def _write(self, text: str) -> None:
        """Write to the console; a console that has gone away is no reason to stop the job."""
        data = text.encode()
        with suppress(OSError):
            while data:
                data = data[os.write(self._console, data) :]


def _open(log: Path) -> int:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{ROOT}.console=quiet writes the output of the job to {log}, which cannot be opened ({error.strerror}). "
            f"Repair that, or use {ROOT}.console=full."
        ) from None


def _point_streams_at(files: list[int]) -> None:
    for stream, file in zip(_STREAMS, files, strict=True):
        os.dup2(file, stream)


def _flush() -> None:
    """Write out what Python holds back; on a full disk this is lost, and no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _plain(line: bytes) -> str:
    """Return a line as a terminal would leave it: without colours, and of a bar the last state."""
    return _COLOUR.sub("", line.decode(errors="replace")).rstrip("\r\n").rsplit("\r", 1)[-1]
