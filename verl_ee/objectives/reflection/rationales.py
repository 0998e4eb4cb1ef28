"""Rationales on disk: accepted and rejected ones side by side, each with what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from verl_ee.errors import ExampleError
from verl_ee.experience.files.parquet import read_table
from verl_ee.objectives.reflection.gates import GATES, RationaleDraft, first_rejection
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.text_writing import TextWriter, ask_writer, write_missing_texts
from verl_ee.prompts.text import state_text

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


def write_rationale_file(
    folder: Path, found: Sequence[Situation], writer: TextWriter[Situation], gates: Sequence[str], min_accepted: float
) -> list[Rationale]:
    """Have a rationale written for every situation that has none yet, and write them all as one sorted file.

    Args:
        folder: where `reflections.parquet` goes; a killed run's parts in it are taken up.
        found: every situation.
        writer: of rationales.
        gates: names of the gates that are asked.
        min_accepted: share that must pass.

    Returns:
        All of them, in the order of the situations.

    Raises:
        ExampleError: if fewer passed; the file with every reason is written before.
    """

    def row(situation: Situation, text: str) -> dict[str, object]:
        return _row(judged(situation, text, writer.name, gates))

    rows = write_missing_texts(folder / RATIONALES_FILE, RATIONALE_SCHEMA, ["trajectory", "step"], found, writer, row)
    result = [_reflection(item) for item in rows]
    _check(result, min_accepted, folder / RATIONALES_FILE)
    return result


def read_rationales(folder: Path) -> list[Rationale]:
    """Read what `write_all` wrote.

    Raises:
        StoreError: if it is missing, broken or of another version.
    """
    return [_reflection(row) for row in read_table(folder / RATIONALES_FILE, RATIONALE_SCHEMA)]


def _check(reflections: Sequence[Rationale], min_accepted: float, path: Path) -> None:
    accepted = [item for item in reflections if item.accepted]
    if accepted and len(accepted) >= min_accepted * len(reflections):
        return
    by_gate = {gate: sum(item.gate == gate for item in reflections) for gate in GATES}
    shown = [f"{item.gate}: it {item.reason}: {item.text[:200]!r}" for item in reflections if not item.accepted][:3]
    raise ExampleError(
        f"{len(accepted)} of {len(reflections)} rationales passed the gates (rejected: "
        f"{', '.join(f'{gate} {count}' for gate, count in by_gate.items() if count)}); at least one, and "
        f"early_experience.reflection.min_accepted={min_accepted:g} of them, must. All are in {path}. "
        "Let another writer write, or ask fewer gates. First:\n  " + "\n  ".join(shown)
    )


def _row(item: Rationale) -> dict[str, object]:
    return dict(vars(item)) | {"transitions": list(item.transitions)}


def _reflection(row: dict[str, object]) -> Rationale:
    return Rationale(**{**row, "transitions": tuple(row["transitions"])})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rationale:
    """A rationale and what became of it.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
        text: the rationale.
        writer: who wrote it.
        transitions: keys of the transitions that it rests on.
        gate: the gate that rejected it, or empty.
        reason: why.
    """

    trajectory: int
    step: int
    text: str
    writer: str
    transitions: tuple[str, ...]
    gate: str = ""
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it may be learned from."""
        return not self.gate


def write_rationales(
    found: Sequence[Situation], writer: TextWriter[Situation], gates: Sequence[str] = tuple(GATES)
) -> list[Rationale]:
    """Have rationales written, and ask the gates about each; a situation that the writer left out has none."""
    return [judged(situation, text, writer.name, gates) for situation, text in ask_writer(found, writer)]


def judged(situation: Situation, text: str, writer: str, gates: Sequence[str]) -> Rationale:
    """Ask the gates about a rationale, and return what becomes of it."""
    rationale = RationaleDraft(
        text,
        state_text(situation.state),
        situation.action,
        situation.outcome.observation,
        tuple(outcome.action for outcome in situation.alternatives),
    )
    gate, reason = first_rejection(rationale, gates)
    where = (situation.trajectory, situation.step)
    return Rationale(*where, text, writer, situation.transitions, gate, reason)


def gate_counts(reflections: Iterable[Rationale]) -> dict[str, int]:
    """Return how many were accepted, and how many each gate rejected."""
    found = Counter(reflection.gate or "accepted" for reflection in reflections)
    return {name: found[name] for name in ("accepted", *GATES) if found[name]}
