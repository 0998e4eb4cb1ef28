"""The lines that the plugin writes while it works: one prefix, a level, and progress bars also without a terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from tqdm import tqdm

PREFIX = "verl_ee | "
"""Begins every line of the plugin; the level follows, then the text."""
PACKAGE = "verl_ee"
PROGRESS = logging.INFO + 1
"""Level of the lines that stand for a progress bar."""
BAR_SECONDS = 5.0
"""Least time between two lines of a progress bar."""
BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
Item = TypeVar("Item")
_LINE = re.compile(rf"{re.escape(PREFIX)}(?P<level>[A-Z]+) \| (?P<text>.*)")


class PluginLine(NamedTuple):
    """A line of the plugin, read back."""

    level: str
    text: str


def read_plugin_line(line: str) -> PluginLine | None:
    """Return the level and the text of a line, whatever Ray or a logger put in front; None if it is not ours."""
    match = _LINE.search(line)
    return None if match is None else PluginLine(match["level"], match["text"])


class _PluginHandler(logging.Handler):
    """Writes records to the standard error of the moment, every line with the prefix and the level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record in one piece, so that no other thread's line gets between its lines."""
        try:
            lines = self.format(record).splitlines()
            sys.stderr.write("".join(f"{PREFIX}{record.levelname} | {line}\n" for line in lines))
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def plugin_logger(module: str) -> logging.Logger:
    """Return the logger of a module of this package.

    Its lines depend neither on verl's logging nor on that of the root logger, which other libraries silence. The
    environment variable `VERL_LOGGING_LEVEL` is verl's.
    """
    package = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, _PluginHandler) for handler in package.handlers):
        logging.addLevelName(PROGRESS, "PROGRESS")
        package.addHandler(_PluginHandler())
        package.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))
        package.propagate = False
    return logging.getLogger(module)


def progress_bar(
    total: int, desc: str, unit: str, initial: int = 0, items: Iterable[Item] | None = None, disable: bool = False
) -> tqdm[Item]:
    """Return a bar that shows progress, rate and time left.

    In a terminal it is live. Elsewhere every refresh is a line of the plugin, at most one in `BAR_SECONDS`.

    Args:
        total: units of the whole task.
        desc: name of the task.
        unit: name of one unit.
        initial: units that were done before.
        items: what to iterate over with the bar; without it the caller updates the bar.
        disable: show nothing.
    """
    if sys.stderr.isatty():
        return tqdm(items, total=total, initial=initial, desc=desc, unit=unit, disable=disable, dynamic_ncols=True)
    return tqdm(
        items,
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=disable,
        file=_BarLines(),
        # Beside a bar of verl, it would otherwise move the cursor to a line of its own.
        position=0,
        bar_format=BAR,
        mininterval=BAR_SECONDS,
        miniters=1,
    )


class _BarLines:
    """A text file, as far as a progress bar needs one, that makes each refresh a line of the plugin."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._logger = plugin_logger(__name__)
        self._shown = ""

    def write(self, text: str) -> None:
        """Log a refresh; the bar's cursor movements and repetitions are left out."""
        line = text.strip()
        if line and line != self._shown:
            self._shown = line
            self._logger.log(PROGRESS, line)

    def flush(self) -> None:
        """Do nothing: each line has been flushed."""
