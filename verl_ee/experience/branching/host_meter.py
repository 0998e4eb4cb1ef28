"""What a host has spent, and until when its step may take: numbers in memory that outlive it."""

from __future__ import annotations

import mmap
import struct
import time

from verl_ee.experience.branching.protocol import Usage

_COUNTS, _DEADLINE = struct.Struct("qq"), struct.Struct("d")
SIZE = _COUNTS.size + _DEADLINE.size
"""Bytes."""


class HostMeter:
    """Written by a host and by what it forks, one at a time; read by its supervisor whenever it likes."""

    def __init__(self, descriptor: int = -1) -> None:
        """Map the memory.

        Args:
            descriptor: of a file of `SIZE` bytes that another process maps too, at first all zero; -1 for memory that
                this process shares with what it forks alone.
        """
        self._memory = mmap.mmap(descriptor, SIZE)

    @property
    def usage(self) -> Usage:
        """Everything spent so far."""
        return Usage(*_COUNTS.unpack_from(self._memory))

    def count(self, usage: Usage) -> None:
        """Add what is about to be spent: a step that ends its process has been counted."""
        total = self.usage + usage
        _COUNTS.pack_into(self._memory, 0, total.env_steps, total.resets)

    def allow(self, seconds: float) -> None:
        """Begin something that may take so long."""
        _DEADLINE.pack_into(self._memory, _COUNTS.size, time.monotonic() + seconds)

    def ease(self) -> None:
        """It has ended: nothing is limited until the next time."""
        _DEADLINE.pack_into(self._memory, _COUNTS.size, 0.0)

    def overdue(self, grace: float) -> bool:
        """Return whether something has taken longer than it may by `grace` seconds."""
        (deadline,) = _DEADLINE.unpack_from(self._memory, _COUNTS.size)
        return bool(deadline) and time.monotonic() > deadline + grace
