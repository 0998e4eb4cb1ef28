"""The rationales of a run: counts per gate, and samples in full of the accepted and of the rejected."""

from __future__ import annotations

import random
from pathlib import Path

from verl_ee.objectives.reflection.rationales import Rationale, gate_counts, read_rationales
from verl_ee.report.columns import aligned


def rationales_text(folder: Path, samples: int = 0, seed: int = 0) -> str:
    """Return a description of `reflections.parquet`.

    Args:
        folder: folder of the file.
        samples: rationales shown in full, of the accepted and of the rejected each.
        seed: seed of the draw.

    Raises:
        StoreError: if it cannot be read.
    """
    rationales = read_rationales(folder)
    rows = [["gate", "rationales", "%"]]
    for gate, count in gate_counts(rationales).items():
        rows.append([gate, str(count), f"{100 * count / len(rationales):.1f}"])
    writers = ", ".join(sorted({rationale.writer for rationale in rationales}))
    lines = [f"rationales: {folder}, {len(rationales)} states, written by {writers}", "", aligned(rows)]
    for accepted in (True, False):
        group = [rationale for rationale in rationales if rationale.accepted == accepted]
        chosen = random.Random(seed).sample(group, min(samples, len(group)))
        lines += map(_sample_text, chosen)
    return "\n".join(lines)


def _sample_text(rationale: Rationale) -> str:
    verdict = "accepted" if rationale.accepted else f"{rationale.gate}: {rationale.reason}"
    return f"\n--- trajectory {rationale.ref.trajectory}, step {rationale.ref.step}: {verdict}\n{rationale.text}"
