"""What became of rationales: counts per gate, and samples in full of those that passed and those that did not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from verl_ee.objectives.reflection.rationales import Rationale, gate_counts, read_rationales
from verl_ee.report.tables import aligned


def rationales_text(folder: Path, samples: int = 0, seed: int = 0) -> str:
    """Return a description of `reflections.parquet`.

    Args:
        folder: that holds it.
        samples: rationales shown in full, of the accepted and of the rejected each.
        seed: of the draw.

    Raises:
        StoreError: if it cannot be read.
    """
    found = read_rationales(folder)
    rows = [["gate", "rationales", "%"]]
    rows += [[name, str(count), f"{100 * count / len(found):.1f}"] for name, count in gate_counts(found).items()]
    writers = ", ".join(sorted({item.writer for item in found}))
    lines = [f"rationales: {folder}, {len(found)} states, written by {writers}", "", aligned(rows)]
    for accepted in (True, False):
        group = [item for item in found if item.accepted == accepted]
        lines += _samples(random.Random(seed).sample(group, min(samples, len(group))))
    return "\n".join(lines)


def _samples(group: Sequence[Rationale]) -> list[str]:
    return [
        f"\n--- trajectory {item.trajectory}, step {item.step}: "
        f"{'accepted' if item.accepted else f'{item.gate}: {item.reason}'}\n{item.text}"
        for item in group
    ]
