"""Branches of a store together with their outcomes, in columns: an object is made of each as it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa

from verl_ee.experience.files.table_rows import TableRows
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

BRANCH_COLUMNS = ("trajectory", "step", "proposer", "key")
OUTCOME_COLUMNS = ("action", "observation", "valid", "done", "outcome_class")
_ROW = "row"
_AT_A_TIME = 1024


@dataclass(frozen=True)
class ExecutedBranch:
    """A branch together with its outcome, as training reads it.

    Attributes:
        ref: the expert state that was branched.
        proposer: `expert`, or the proposer of the alternative.
        transition: key of the transition.
        outcome: the action, and what came back.
    """

    ref: StateRef
    proposer: str
    transition: str
    outcome: Outcome


class ExecutedBranches(Sequence[ExecutedBranch]):
    """Branches of a store, in the order of the expert file; equal to any sequence of equal branches."""

    def __init__(self, branches: pa.Table, outcomes: pa.Table, rows: pa.Array) -> None:
        """Join columns of both tables of a store.

        Args:
            branches: `BRANCH_COLUMNS` of the branches.
            outcomes: transitions with `OUTCOME_COLUMNS`.
            rows: for each branch the row of its transition.
        """
        self._branches = branches.append_column(_ROW, rows)
        self._outcomes = outcomes.select(OUTCOME_COLUMNS)
        self._outcome_rows = TableRows(self._outcomes)

    def take(self, indices: Sequence[int]) -> ExecutedBranches:
        """Return the branches of some indices, in that order."""
        chosen = self._branches.take(pa.array(indices, pa.int64()))
        return ExecutedBranches(chosen.drop_columns([_ROW]), self._outcomes, chosen.column(_ROW))

    def __len__(self) -> int:
        return int(self._branches.num_rows)

    def __iter__(self) -> Iterator[ExecutedBranch]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self._made(start, _AT_A_TIME)

    @overload
    def __getitem__(self, index: int) -> ExecutedBranch: ...

    @overload
    def __getitem__(self, index: slice) -> ExecutedBranches: ...

    def __getitem__(self, index: int | slice) -> ExecutedBranch | ExecutedBranches:
        """Return a branch, or some of them."""
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self._made(range(len(self))[index], 1)[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _made(self, start: int, count: int) -> list[ExecutedBranch]:
        branches = self._branches.slice(start, count)
        outcomes = self._outcome_rows.at(branches.column(_ROW).to_numpy())
        return [
            ExecutedBranch(StateRef(row["trajectory"], row["step"]), row["proposer"], row["key"], outcome_of(outcome))
            for row, outcome in zip(branches.to_pylist(), outcomes, strict=True)
        ]


def outcome_of(row: dict[str, object]) -> Outcome:
    """Return the outcome of a row with `OUTCOME_COLUMNS`."""
    # Files of version 2 have no classes.
    values = {name: row[name] for name in OUTCOME_COLUMNS} | {"outcome_class": row["outcome_class"] or ""}
    return Outcome(**values)  # type: ignore[arg-type]
