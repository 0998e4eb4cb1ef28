"""Alternatives that were decided and what their execution took, state by state: a killed collection goes on from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.proposers import Proposal

JOURNAL_SCHEMA = pa.schema(
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


@dataclass(frozen=True)
class DecidedState:
    """A state whose alternatives are decided.

    Attributes:
        proposals: its alternatives, in order.
        usage: what its execution has taken.
    """

    proposals: tuple[Proposal, ...]
    usage: Usage


class ProposalJournal:
    """What was proposed and spent at the states of one run; which outcomes are known is for the facts to say.

    Attributes:
        done: by trajectory and step.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = PartFiles(folder, JOURNAL_SCHEMA)
        self._new: list[dict[str, Any]] = []
        self.done: dict[tuple[int, int], DecidedState] = {}
        for row in self.parts.read():
            proposals = tuple(Proposal(**proposal) for proposal in row["proposals"])
            self._keep(row["trajectory"], row["step"], DecidedState(proposals, Usage(row["env_steps"], row["resets"])))

    def add(self, trajectory: int, step: int, done: DecidedState) -> None:
        """Add a state, or what was spent on it since it was added."""
        self._keep(trajectory, step, done)
        row = {"trajectory": trajectory, "step": step, "proposals": [dict(vars(item)) for item in done.proposals]}
        self._new.append(row | vars(done.usage))

    def flush(self) -> None:
        """Write what was added since the last time."""
        new, self._new = self._new, []
        self.parts.write(new)

    def _keep(self, trajectory: int, step: int, done: DecidedState) -> None:
        before = self.done.get((trajectory, step), DecidedState(done.proposals, Usage()))
        self.done[trajectory, step] = DecidedState(before.proposals, before.usage + done.usage)
