"""Rationales on disk: accepted and rejected ones side by side, each with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from verl_ee.errors import ExampleError
from verl_ee.experience.store import read_table
from verl_ee.objectives.gates import GATES
from verl_ee.objectives.reflection import Reflection, Situation, judged
from verl_ee.objectives.texts import Writer, write_once

FILE = "reflections.parquet"
SCHEMA = pa.schema(
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


def write_all(
    folder: Path, found: Sequence[Situation], writer: Writer[Situation], gates: Sequence[str], min_accepted: float
) -> list[Reflection]:
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

    rows = write_once(folder / FILE, SCHEMA, ["trajectory", "step"], found, writer, row)
    result = [_reflection(item) for item in rows]
    _check(result, min_accepted, folder / FILE)
    return result


def read_all(folder: Path) -> list[Reflection]:
    """Read what `write_all` wrote.

    Raises:
        StoreError: if it is missing, broken or of another version.
    """
    return [_reflection(row) for row in read_table(folder / FILE, SCHEMA)]


def _check(reflections: Sequence[Reflection], min_accepted: float, path: Path) -> None:
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


def _row(item: Reflection) -> dict[str, object]:
    return dict(vars(item)) | {"transitions": list(item.transitions)}


def _reflection(row: dict[str, object]) -> Reflection:
    return Reflection(**{**row, "transitions": tuple(row["transitions"])})  # type: ignore[arg-type]
