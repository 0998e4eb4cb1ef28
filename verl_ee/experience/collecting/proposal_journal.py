"""Alternatives that were decided and what their execution took, by state: a killed collection goes on from here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.state_ref import StateRef

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
        ("responses", pa.int32()),
        ("without_action", pa.int32()),
    ]
)


@dataclass(frozen=True)
class DecidedState:
    """A state whose alternatives are decided.

    Attributes:
        proposals: the alternatives, in order.
        usage: steps and resets that their execution has taken.
        responses: responses that a policy gave there.
        without_action: how many of them held no action.
    """

    proposals: tuple[Proposal, ...]
    usage: Usage = field(default_factory=Usage)
    responses: int = 0
    without_action: int = 0


class ProposalJournal:
    """Alternatives and usage at the states of one run; the transition cache says which outcomes are known.

    Attributes:
        parts: the files of the folder.
        decided: by state.
    """

    def __init__(self, folder: Path) -> None:
        """Read the journal of a folder; it need not exist.

        Raises:
            StoreError: if a file is broken.
        """
        self.parts = PartFiles(folder, JOURNAL_SCHEMA)
        self.decided: dict[StateRef, DecidedState] = {}
        self._unwritten: list[TableRow] = []
        for row in self.parts.read():
            proposals = tuple(Proposal(**proposal) for proposal in row["proposals"])
            usage = Usage(row["env_steps"], row["resets"])
            state = DecidedState(proposals, usage, row["responses"], row["without_action"])
            self._keep(StateRef(row["trajectory"], row["step"]), state)

    @property
    def usage(self) -> Usage:
        """Steps and resets of all states together."""
        return sum((state.usage for state in self.decided.values()), Usage())

    def add(self, ref: StateRef, state: DecidedState) -> None:
        """Add a state, or further usage of a state that was added before."""
        self._keep(ref, state)
        row = {
            "trajectory": ref.trajectory,
            "step": ref.step,
            "proposals": [dict(vars(proposal)) for proposal in state.proposals],
            **vars(state.usage),
            "responses": state.responses,
            "without_action": state.without_action,
        }
        self._unwritten.append(row)

    def flush(self) -> None:
        """Write what was added since the last time."""
        self.parts.write(self._unwritten)
        self._unwritten = []

    def _keep(self, ref: StateRef, state: DecidedState) -> None:
        """Keep the first proposals of a state, and the sum of its usage."""
        before = self.decided.get(ref)
        if before is None:
            self.decided[ref] = state
        else:
            self.decided[ref] = replace(before, usage=before.usage + state.usage)
