"""A sequence whose items are made as they are read, from tables that are mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
_AT_A_TIME = 1024


class LazySequence(Sequence[Item], Generic[Item]):
    """Items by index, of which only the indices are kept; equal to any sequence of equal items."""

    def __init__(self, indices: Sequence[int] | NDArray[np.int64], make: Callable[[Sequence[int]], list[Item]]) -> None:
        """Prepare to read.

        Args:
            indices: index of each item, as `make` takes it.
            make: returns the items of some indices, in that order.
        """
        self._indices, self._make = np.asarray(indices, np.int64), make

    def take(self, positions: Sequence[int]) -> LazySequence[Item]:
        """Return the items at some positions, in that order."""
        return LazySequence(self._indices[np.asarray(positions, np.int64)], self._make)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self._make(self._indices[start : start + _AT_A_TIME].tolist())

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> LazySequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | LazySequence[Item]:
        """Return an item, or some of them."""
        if isinstance(index, slice):
            return LazySequence(self._indices[index], self._make)
        return self._make([int(self._indices[range(len(self))[index]])])[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
