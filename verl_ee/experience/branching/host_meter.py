"""Steps, resets and the present deadline of a host, in memory that outlives the host."""

from __future__ import annotations

import mmap
import struct
import time

from verl_ee.experience.branching.protocol import Usage

_COUNTS, _DEADLINE = struct.Struct("qq"), struct.Struct("d")
SIZE = _COUNTS.size + _DEADLINE.size
"""Bytes."""


class HostMeter:
    """Counts steps and resets of one host, and holds its deadline.

    The host and its forked children write it, one at a time; the supervisor may read it at any time.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Map the memory.

        Args:
            descriptor: file descriptor of `SIZE` bytes that another process maps too, at first all zero; -1 for
                memory that only this process and its forked children share.
        """
        self._memory = mmap.mmap(descriptor, SIZE)

    @property
    def usage(self) -> Usage:
        """Steps and resets so far."""
        return Usage(*_COUNTS.unpack_from(self._memory))

    def add(self, usage: Usage) -> None:
        """Count steps and resets before they are executed, so that a step that ends its process is counted too."""
        total = self.usage + usage
        _COUNTS.pack_into(self._memory, 0, total.env_steps, total.resets)

    def start_timer(self, seconds: float) -> None:
        """Begin an operation that may take so many seconds."""
        _DEADLINE.pack_into(self._memory, _COUNTS.size, time.monotonic() + seconds)

    def stop_timer(self) -> None:
        """End the operation: there is no deadline until the next one begins."""
        _DEADLINE.pack_into(self._memory, _COUNTS.size, 0.0)

    def is_overdue(self, grace: float) -> bool:
        """Return whether the present operation is over its deadline by more than `grace` seconds."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, _COUNTS.size)
        return bool(deadline) and time.monotonic() > deadline + grace
