"""Mid-training beside verl's own SFT trainer, TRL's, and bare vLLM: `make bench BENCH=midtrain`.

Rates are tokens per second, read and learned, without padding, from the end of step `WARM_UP` to the end of the last
one: start-up is left out on every side. All sides take the same batches in the same order and must report the same
losses. Ours and TRL's encode before their first step, verl's while it trains, in processes of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks import proposals, trainers
from benchmarks.figures import AtLeast, Report, Sample
from benchmarks.trainers import BATCH, TrainingData

RUNS = 5
"""Turns of each side, unless the environment variable RUNS says otherwise: the true median of the ratios lies between
the ends of their spread in 94 of 100 such measurements."""
STEPS, WARM_UP = 50, 10
NEAR = 1e-3
"""Nats that two sides' losses of a step may lie apart; TRL rounds."""


class Bench:
    """Measures trainers, and compares what they did."""

    def __init__(self, data: TrainingData) -> None:
        self._data = data
        self._losses: list[float] = []

    def rate(self, name: str) -> Sample:
        """Train with one side.

        Raises:
            RuntimeError: if it reports other losses than the sides before it.
        """
        steps = trainers.train(name, self._data)
        losses = [step.loss for step in steps]
        self._losses = self._losses or losses
        for number, (one, other) in enumerate(zip(losses, self._losses, strict=True), 1):
            if abs(one - other) > NEAR:
                raise RuntimeError(f"{name} does other work: at step {number} its loss is {one}, another's {other}.")
        tokens = sum(self._data.tokens[WARM_UP:])
        return Sample(tokens / (steps[-1].time - steps[WARM_UP - 1].time), {"tokens": tokens})


def figures(report: Report, folder: Path) -> None:
    """Print ours beside verl's SFT trainer, and beside TRL's where that is installed."""
    bench = Bench(trainers.prepare(folder, STEPS))
    ours, constants = partial(bench.rate, "ours"), {"batch": BATCH, "steps": STEPS - WARM_UP}
    at_least = {"ratio_to_reference": AtLeast(0.95)}
    report.figure("midtrain/verl_sft", ours, partial(bench.rate, "verl"), None, at_least, constants)
    if find_spec("trl") is None:
        missing = (
            "TRL is not installed, so there is nothing to compare with. Install the extra: pip install -e '.[bench]'"
        )
        report.line({"name": "midtrain/trl_sft", "missing": missing})
    else:
        report.figure("midtrain/trl_sft", ours, partial(bench.rate, "trl"), None, None, constants)


def main() -> int:
    """Print all figures, and return whether one was below its threshold."""
    report = Report()
    if "RUNS" not in os.environ:
        report.runs = RUNS
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as folder:
        figures(report, Path(folder))
        proposals.figures(report, Path(folder))
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
