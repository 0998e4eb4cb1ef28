"""Branches of a store together with their outcomes, which stay in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from verl_ee.experience.files.lazy_sequence import LazySequence
from verl_ee.experience.files.mapped_tables import TableRow, TableRows
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

BRANCH_COLUMNS = ("trajectory", "step", "proposer", "key")
OUTCOME_COLUMNS = ("action", "observation", "valid", "done", "outcome_class")


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


def executed_branches(branches: pa.Table, outcomes: pa.Table, rows: pa.Array) -> LazySequence[ExecutedBranch]:
    """Return the branches of a store, each of which is made as it is read.

    Args:
        branches: `BRANCH_COLUMNS` of the branches.
        outcomes: transitions with `OUTCOME_COLUMNS`.
        rows: for each branch the row of its transition.
    """
    branch_rows, outcome_rows = TableRows(branches), TableRows(outcomes.select(OUTCOME_COLUMNS))
    row_of = rows.to_numpy()

    def make(indices: Sequence[int]) -> list[ExecutedBranch]:
        pairs = zip(branch_rows.at(indices), outcome_rows.at(row_of[indices]), strict=True)
        return [
            ExecutedBranch(StateRef(row["trajectory"], row["step"]), row["proposer"], row["key"], outcome_of(outcome))
            for row, outcome in pairs
        ]

    return LazySequence(np.arange(branches.num_rows), make)


def outcome_of(row: TableRow) -> Outcome:
    """Return the outcome of a row with `OUTCOME_COLUMNS`."""
    # Files of version 2 have no classes.
    values = {name: row[name] for name in OUTCOME_COLUMNS} | {"outcome_class": row["outcome_class"] or ""}
    return Outcome(**values)
