"""The order of a mini-batch's rows over workers and micro-batches, chosen so that little is padded.

verl gives each worker equally many consecutive rows, and cuts these into micro-batches of equally many rows.
The loss is a mean over the tokens of the whole mini-batch, so neither order nor cuts change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

MOST_ROWS = 1.1
"""Rows that an engine which pads may be sent, padding included, per row that was given."""
MOST_TOKENS = 1.25
"""Tokens that it may be sent per token that was given."""
FILLER = 1
"""Tokens of a row that only fills up."""


@dataclass(frozen=True)
class BatchLimits:
    """Workers and micro-batches that a mini-batch has to be divided into.

    Attributes:
        workers: workers that train on different rows.
        rows: most rows of a micro-batch; None: `tokens` limits it.
        tokens: most tokens of a micro-batch; None: `rows` limits it.
        pads: whether the engine pads the rows of a micro-batch to one length.
    """

    workers: int
    rows: int | None
    tokens: int | None
    pads: bool


def pads_rows(job: DictConfig) -> bool:
    """Return whether a job's engine pads rows, and may be given micro-batches of any number.

    verl takes this key for Megatron's engine too, whatever its own says. With virtual pipeline stages Megatron needs a
    number of micro-batches that verl alone arranges.

    Args:
        job: `actor_rollout_ref`.
    """
    has_virtual_stages = job.actor.strategy == "megatron" and job.actor.megatron.virtual_pipeline_model_parallel_size
    return not (job.model.use_remove_padding or has_virtual_stages)


@dataclass(frozen=True)
class Layout:
    """Rows in the order in which they are sent.

    Attributes:
        order: for each row, the index of its example; None for a row that fills up.
        rows: rows of a micro-batch; None: verl fills micro-batches up to a number of tokens.
    """

    order: tuple[int | None, ...]
    rows: int | None


def layout_of(lengths: Sequence[int], limits: BatchLimits) -> Layout:
    """Return the order of a mini-batch's rows, and the size of its micro-batches.

    Rows are sorted by length and dealt out in rounds, of one micro-batch for each worker: its rows are of like length,
    and workers get about equally many tokens.

    Args:
        lengths: tokens of each row; at least one.
        limits: workers and micro-batches.
    """
    share = -(-len(lengths) // limits.workers)
    if limits.pads:
        return _little_padded(lengths, limits, share)
    if limits.rows is None:
        return Layout(_dealt(lengths, limits.workers, 1), None)
    micro_batches = -(-share // limits.rows)
    size = -(-share // micro_batches)
    return Layout(_dealt(lengths, limits.workers, size), size)


def sent_tokens(layout: Layout, lengths: Sequence[int], limits: BatchLimits) -> int:
    """Return the tokens that the engines compute on, padding included."""
    sent = [FILLER if index is None else lengths[index] for index in layout.order]
    if not limits.pads or layout.rows is None:
        return sum(sent)
    size = layout.rows
    return sum(size * max(sent[first : first + size]) for first in range(0, len(sent), size))


def _little_padded(lengths: Sequence[int], limits: BatchLimits, share: int) -> Layout:
    """Return the layout with the largest micro-batches that keep padding within its bounds."""
    longest = max(lengths)
    largest = min(share, limits.rows or share, share if limits.tokens is None else limits.tokens // longest)
    for size in range(largest, 1, -1):
        layout = Layout(_dealt(lengths, limits.workers, size), size)
        too_many_rows = len(layout.order) > MOST_ROWS * len(lengths)
        too_many_tokens = sent_tokens(layout, lengths, limits) > MOST_TOKENS * sum(lengths)
        if not (too_many_rows or too_many_tokens):
            return layout
    return Layout(_dealt(lengths, limits.workers, 1), 1)


def _dealt(lengths: Sequence[int], workers: int, size: int) -> tuple[int | None, ...]:
    """Return the rows worker by worker, after they have been dealt out in rounds of `size` rows for each."""
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rounds = -(-len(lengths) // (workers * size))
    dealt: list[list[int | None]] = [[] for _ in range(workers)]
    for turn in range(rounds * size):
        hand: list[int | None] = list(longest_first[turn * workers : (turn + 1) * workers])
        hand += [None] * (workers - len(hand))
        # Back and forth, so that no worker always gets the longest.
        for worker, index in enumerate(hand if turn % 2 == 0 else reversed(hand)):
            dealt[worker].append(index)
    return tuple(index for rows in dealt for index in rows)
