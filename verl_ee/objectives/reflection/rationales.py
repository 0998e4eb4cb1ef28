"""Rationales on disk: accepted and rejected ones side by side, each with the transitions that it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.reflection.gates import ACCEPTED, GATES, RationaleDraft, first_rejection, no_text
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.writing.text_writing import TextWriter, write_missing_texts
from verl_ee.prompts.state_text import state_text

RATIONALES_FILE = "reflections.parquet"
RATIONALE_SCHEMA = pa.schema(
    [
        ("trajectory", pa.int32()),
        ("step", pa.int32()),
        ("text", pa.string()),
        ("writer", pa.string()),
        ("transitions", pa.list_(pa.string())),
        ("gate", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Rationale:
    """A rationale as it was written and judged.

    Attributes:
        ref: position of the state that it was written for.
        text: the rationale, or what was written of it.
        writer: kind of the writer: `policy`, `endpoint` or `template`.
        transitions: keys of the transitions that it rests on.
        gate: the gate that rejected it, or empty.
        reason: the reason of that gate, or empty.
    """

    ref: StateRef
    text: str
    writer: str
    transitions: tuple[str, ...]
    gate: str = ""
    reason: str = ""

    @property
    def key(self) -> StateRef:
        """Key of the rationale among all of a file."""
        return self.ref

    @property
    def accepted(self) -> bool:
        """Whether it may be learned from."""
        return not self.gate

    def to_row(self) -> TableRow:
        """Return the rationale as a row of the file."""
        return {
            "trajectory": self.ref.trajectory,
            "step": self.ref.step,
            "text": self.text,
            "writer": self.writer,
            "transitions": list(self.transitions),
            "gate": self.gate,
            "reason": self.reason,
        }

    @classmethod
    def from_row(cls, row: TableRow) -> Rationale:
        """Return the rationale of a row of the file."""
        ref = StateRef(row["trajectory"], row["step"])
        return cls(ref, row["text"], row["writer"], tuple(row["transitions"]), row["gate"], row["reason"])


def write_rationales(
    folder: Path,
    situations: Sequence[Situation],
    writer: TextWriter[Situation],
    gates: Sequence[str],
) -> list[Rationale]:
    """Have a rationale written for every situation that has none yet, judge them, and write all into one file.

    Args:
        folder: folder of `reflections.parquet`; the parts that a killed run left in it are taken up.
        situations: all of them.
        writer: writer of rationales.
        gates: names of the gates that a rationale must pass; one that its writer did not end, or that has no word, is
            rejected anyway.

    Returns:
        All of them, in the order of the situations.

    Raises:
        ExampleError: if the writer stopped, or left texts out; earlier ones are kept.
        StoreError: if a file of an earlier run cannot be read.
    """

    def judge(situation: Situation, text: str, cause: str) -> Rationale:
        reason = no_text(text, cause)
        gate, reason = ("length", reason) if reason else first_rejection(_draft(situation, text), gates)
        return Rationale(situation.ref, text, writer.kind, situation.transitions, gate, reason)

    path = folder / RATIONALES_FILE
    return write_missing_texts(path, RATIONALE_SCHEMA, Rationale, situations, writer, judge)


def read_rationales(folder: Path) -> list[Rationale]:
    """Read the file that `write_rationales` wrote.

    Raises:
        StoreError: if it is missing, broken or of another version.
    """
    return [Rationale.from_row(row) for row in read_table(folder / RATIONALES_FILE, RATIONALE_SCHEMA)]


def gate_counts(rationales: Iterable[Rationale]) -> dict[str, int]:
    """Return how many were accepted, and how many each gate rejected; gates of another version come last."""
    counts = Counter(rationale.gate or ACCEPTED for rationale in rationales)
    return {name: counts[name] for name in dict.fromkeys((ACCEPTED, *GATES, *counts)) if counts[name]}


def _draft(situation: Situation, text: str) -> RationaleDraft:
    return RationaleDraft(
        text,
        state_text(situation.state),
        situation.expert_action,
        situation.expert_branch.outcome.observation,
        tuple(branch.outcome.action for branch in situation.alternatives),
        tuple(branch.outcome.observation for branch in situation.alternatives),
    )
