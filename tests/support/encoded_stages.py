"""Two stages of many rows that are encoded in a process of its own, which ends itself after some parts.

python -m support.encoded_stages FOLDER PARTS
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from support.jobs import ROOT

from verl_ee.config import Objective
from verl_ee.objectives.examples import Example, LengthLimits
from verl_ee.objectives.files.example_files import ExampleFiles
from verl_ee.objectives.files.example_tables import EncodedPart, Part, PartEncoder
from verl_ee.objectives.rows import Row

ROWS = 20_000
STAGES: dict[str, tuple[Objective, ...]] = {
    "world_model": ("world_model",),
    "reflection": ("reflection", "imitation"),
}
LIMITS = LengthLimits(512, 512, 512)


def rows_of(objective: Objective, count: int) -> Callable[[], Iterator[Row]]:
    """Return what makes so many rows."""

    def rows() -> Iterator[Row]:
        for number in range(count):
            text = f"You are in room {number % 97}. You see a box {number} and a lamp."
            yield Row(({"role": "user", "content": text},), f"take box {number}", objective, f"{objective} {number}")

    return rows


def main() -> None:
    """Encode, and end after some parts as a process that is killed does."""
    from transformers import AutoTokenizer

    from verl_ee.trainer.rollout.tokens import encoder_for

    folder, parts = Path(sys.argv[1]), int(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    encoder, left = PartEncoder(encoder_for(tokenizer, "qwen2", {}), LIMITS), iter(range(parts))

    def encode(given: Iterable[Part]) -> Iterator[EncodedPart]:
        for part in encoder(given):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            yield part

    files = ExampleFiles(folder, encoder, asdict(LIMITS), encode)
    for stage, objectives in STAGES.items():
        share = ROWS // len(objectives)
        makers: dict[Objective, Callable[[], Iterable[Row | Example]]] = {
            objective: rows_of(objective, share) for objective in objectives
        }
        examples = files.examples(stage, [], makers, dict.fromkeys(objectives, share))
        print(stage, len(examples), examples.digest, flush=True)


if __name__ == "__main__":
    main()
