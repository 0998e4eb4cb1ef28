"""What has been executed and answered so far: small immutable files that any number of writers add to one folder.

A run that was killed finds here what it had done; runs that share a folder of facts never execute an action twice.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ee.errors import StoreError
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.rendering import canonical
from verl_ee.experience.store import TRANSITION_SCHEMA, Transition, read_table, row_of, write_table
from verl_ee.experience.work import Used

ANSWER_SCHEMA = pa.schema(
    [
        ("trajectory", pa.int32()),
        ("step", pa.int32()),
        (
            "proposals",
            pa.list_(
                pa.struct(
                    [
                        ("action", pa.string()),
                        ("proposer", pa.string()),
                        ("policy", pa.string()),
                        ("sampling", pa.string()),
                    ]
                )
            ),
        ),
        ("env_steps", pa.int64()),
        ("resets", pa.int64()),
    ]
)


class Parts:
    """Parquet files of one schema in one folder; each is written whole, by one writer, and never changed."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self._schema = folder, schema
        self._writer = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._own: list[Path] = []
        self._written = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the rows of every file, whoever wrote it.

        Raises:
            StoreError: if a file is broken or of another version.
        """
        found: dict[Path, list[dict[str, Any]]] = {}
        while True:
            listed = sorted(self.folder.glob("*.parquet"))
            for path in listed:
                if path not in found:
                    try:
                        found[path] = read_table(path, self._schema)
                    except StoreError:
                        if path.exists():
                            raise
                        # Its writer has put its files together meanwhile: another one holds its rows.
                        break
            else:
                return [row for path in sorted(found) for row in found[path]]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add a file with `rows`."""
        if rows:
            # No name is used twice: a reader that has listed a file would find other rows in it.
            path = self.folder / f"{self._writer}-{self._written:06d}.parquet"
            self._written += 1
            write_table(path, rows, self._schema, {})
            self._own.append(path)

    def join(self) -> None:
        """Put the files of this writer together into one; readers see every row throughout."""
        if len(self._own) > 1:
            rows = [row for path in self._own for row in read_table(path, self._schema)]
            parts, self._own = self._own, []
            self.write(rows)
            for path in parts:
                path.unlink(missing_ok=True)


class Facts:
    """Transitions by state and canonical action.

    Attributes:
        found: keys of what was there from the start.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = Parts(folder, TRANSITION_SCHEMA)
        self._states: dict[str, dict[str, Transition]] = {}
        self._new: list[Transition] = []
        for row in self.parts.read():
            self._keep(Transition(**{**row, "prefix": tuple(row["prefix"])}))
        self.found = frozenset(fact.key for actions in self._states.values() for fact in actions.values())

    def known(self, state: str) -> Mapping[str, Transition]:
        """Return what is known of a state, by canonical action."""
        return self._states.get(state, {})

    def add(self, transitions: Iterable[Transition]) -> None:
        """Add facts; those already known are checked against what is known.

        Raises:
            StoreError: if the same action in the same state had another outcome before.
        """
        for transition in transitions:
            if self._keep(transition):
                self._new.append(transition)

    def flush(self) -> None:
        """Write what was added since the last time."""
        new, self._new = self._new, []
        self.parts.write([row_of(transition) for transition in new])

    def _keep(self, transition: Transition) -> bool:
        actions = self._states.setdefault(transition.state, {})
        before = actions.setdefault(canonical(transition.action), transition)
        if before is transition:
            return True
        if (before.observation, before.valid, before.done) != (
            transition.observation,
            transition.valid,
            transition.done,
        ):
            raise StoreError(
                f"Two outcomes of one transition in {self.parts.folder}: task {transition.task!r}, after "
                f"{len(transition.prefix)} actions, {transition.action!r} led to {before.observation!r} and to "
                f"{transition.observation!r}. The environment is not deterministic: register it with "
                "nondeterministic=True, or delete the folder if the environment has changed without its version."
            )
        return False


@dataclass(frozen=True)
class Done:
    """A state whose alternatives are decided.

    Attributes:
        proposals: its alternatives, in order.
        used: what its execution has taken.
    """

    proposals: tuple[Proposal, ...]
    used: Used


class Journal:
    """What was proposed and spent at the states of one run; which outcomes are known is for the facts to say.

    Attributes:
        done: by trajectory and step.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = Parts(folder, ANSWER_SCHEMA)
        self._new: list[dict[str, Any]] = []
        self.done: dict[tuple[int, int], Done] = {}
        for row in self.parts.read():
            proposals = tuple(Proposal(**proposal) for proposal in row["proposals"])
            self._keep(row["trajectory"], row["step"], Done(proposals, Used(row["env_steps"], row["resets"])))

    def add(self, trajectory: int, step: int, done: Done) -> None:
        """Add a state, or what was spent on it since it was added."""
        self._keep(trajectory, step, done)
        row = {"trajectory": trajectory, "step": step, "proposals": [dict(vars(item)) for item in done.proposals]}
        self._new.append(row | vars(done.used))

    def flush(self) -> None:
        """Write what was added since the last time."""
        new, self._new = self._new, []
        self.parts.write(new)

    def _keep(self, trajectory: int, step: int, done: Done) -> None:
        before = self.done.get((trajectory, step), Done(done.proposals, Used()))
        self.done[trajectory, step] = Done(before.proposals, before.used + done.used)
