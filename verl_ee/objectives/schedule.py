"""Order of the examples and learning rate of every step of a stage."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from verl_ee.config import StageConfig
from verl_ee.objectives.examples import Example


def optimizer_steps_of(stage: StageConfig, example_count: int) -> int:
    """Return the number of optimizer steps of a stage: the last batch of an epoch may be smaller."""
    return stage.epochs * math.ceil(example_count / stage.batch_size)


def batches(stage: StageConfig, examples: Sequence[Example], steps: int | None = None) -> Iterator[list[Example]]:
    """Yield the batches of a stage; each epoch is a permutation that depends on the seed and the epoch alone.

    Args:
        stage: epochs, batch size and seed.
        examples: examples of every objective of the stage.
        steps: stop after so many batches; None for all epochs.
    """
    return itertools.islice(_all_batches(stage, examples), steps)


def learning_rate(stage: StageConfig, step: int, total: int) -> float:
    """Return the learning rate of a step.

    Linear warm-up over `warmup_ratio` of the steps; then constant, or half a cosine down to 0.

    Args:
        stage: the stage.
        step: counted from 0.
        total: steps of the stage.
    """
    warmup = int(stage.warmup_ratio * total)
    if step < warmup:
        return stage.lr * (step + 1) / (warmup + 1)
    if stage.schedule == "constant":
        return stage.lr
    progress = (step - warmup) / max(1, total - warmup)
    return stage.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def _all_batches(stage: StageConfig, examples: Sequence[Example]) -> Iterator[list[Example]]:
    for epoch in range(stage.epochs):
        order = list(range(len(examples)))
        random.Random(f"{stage.seed}:{epoch}").shuffle(order)
        for start in range(0, len(order), stage.batch_size):
            yield [examples[index] for index in order[start : start + stage.batch_size]]
