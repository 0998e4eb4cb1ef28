"""Order of the examples and learning rate of every step of a stage."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from verl_ee.config import StageConfig
from verl_ee.objectives.examples import Example


def optimizer_steps_of(stage: StageConfig, example_count: int) -> int:
    """Return the number of optimizer steps of a stage: the last batch of an epoch may be smaller."""
    return stage.epochs * math.ceil(example_count / stage.batch_size)


def most_examples(stages: Sequence[StageConfig], steps: int) -> int:
    """Return how many examples each of some stages can learn in so many optimizer steps together; at least one.

    Args:
        stages: at least one.
        steps: of all stages together.
    """
    counts = range(1, max(1, steps) * max(stage.batch_size for stage in stages) + 1)
    fitting = bisect.bisect_right(
        counts, steps, key=lambda count: sum(optimizer_steps_of(item, count) for item in stages)
    )
    return max(1, fitting)


def remaining_steps(steps: Sequence[int], taken: int) -> list[int]:
    """Return the steps of each stage if other stages take some of them, each giving in proportion to what it has.

    Together they have exactly as many as are left. A stage keeps at least one step, so where fewer are left than there
    are stages each has one.

    Args:
        steps: of each stage, at least one.
        taken: by other stages.
    """
    spare = sum(steps) - len(steps)
    left = max(0, spare - taken)
    # Shares are rounded down at the ends of the stages, counted from the first, so that they add up.
    ends = [0, *itertools.accumulate(count - 1 for count in steps)]
    shares = [left * end // spare if spare else 0 for end in ends]
    return [1 + end - start for start, end in itertools.pairwise(shares)]


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
