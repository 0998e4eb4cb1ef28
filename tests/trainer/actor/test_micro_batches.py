"""Mini-batches are divided so that little is padded, and every row is sent exactly once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import hydra
import pytest
from support.actor_rows import Rows
from verl.utils import tensordict_utils as tu

from verl_ee.objectives.examples import Example
from verl_ee.trainer.actor.batch import to_batch
from verl_ee.trainer.actor.micro_batches import BatchLimits, layout_of, pads_rows

WORKERS, MICRO = (1, 2, 8), range(1, 17)


def batch_of(lengths: Sequence[int]) -> list[Example]:
    """Return examples of these lengths, each with its number as its first token."""
    return [Example((index, *[0] * (length - 2)), (1,), "imitation") for index, length in enumerate(lengths)]


def computed_tokens(lengths: Sequence[int], limits: BatchLimits) -> int:
    """Return the tokens that verl's engines compute on; rows are cut as its dispatch and its engines cut them."""
    batch = to_batch(batch_of(lengths), limits, 0)
    total = 0
    for share in tu.chunk_tensordict(batch, limits.workers):
        rows = [len(row) for row in share["input_ids"].unbind()]
        if not limits.pads:
            total += sum(rows)
            continue
        assert tu.get_non_tensor_data(batch, "use_dynamic_bsz", None) is False
        size = tu.get_non_tensor_data(batch, "micro_batch_size_per_gpu", None)
        assert len(rows) % size == 0
        assert limits.tokens is None or size == 1 or size * max(rows) <= limits.tokens
        total += sum(size * max(rows[first : first + size]) for first in range(0, len(rows), size))
    return total


def limits_of(workers: int, micro: int, by_tokens: bool, pads: bool, length: int) -> BatchLimits:
    return BatchLimits(workers, None if by_tokens else micro, micro * length if by_tokens else None, pads)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
def test_rows_of_equal_length_are_hardly_padded(workers: int, by_tokens: bool, pads: bool) -> None:
    for micro, count in itertools.product(MICRO, (16, 13, 5, 32)):
        limits = limits_of(workers, micro, by_tokens, pads, 200)
        assert computed_tokens([200] * count, limits) <= 1.1 * 200 * count, (micro, count)


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
def test_rows_of_the_household_are_little_padded(workers: int, by_tokens: bool, rows: Rows) -> None:
    measured = [len(prompt) + len(target) for prompt, target, _ in rows]
    draw = random.Random(7)
    for micro in MICRO:
        lengths = [draw.choice(measured) for _ in range(16)]
        limits = limits_of(workers, micro, by_tokens, True, max(lengths))
        assert computed_tokens(lengths, limits) <= 1.25 * sum(lengths), micro


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_micro_batch_has_rows_of_like_length(workers: int, by_tokens: bool) -> None:
    lengths = [100, 300] * 8
    limits = limits_of(workers, 4, by_tokens, True, 300)
    assert layout_of(lengths, limits).rows == 4
    assert computed_tokens(lengths, limits) == sum(lengths)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("by_tokens", [False, True])
def test_every_row_is_sent_once_and_as_many_to_each_worker(by_tokens: bool, pads: bool) -> None:
    draw = random.Random(3)
    for workers, micro, count in itertools.product(WORKERS, MICRO, (1, 7, 16, 33)):
        lengths = [draw.randint(2, 400) for _ in range(count)]
        layout = layout_of(lengths, limits_of(workers, micro, by_tokens, pads, 400))
        assert sorted(index for index in layout.order if index is not None) == list(range(count))
        assert len(layout.order) % (workers * (layout.rows or 1)) == 0
        if layout.rows is not None and not by_tokens:
            assert layout.rows <= micro


def test_workers_get_about_as_many_tokens() -> None:
    draw = random.Random(5)
    lengths = [draw.randint(50, 450) for _ in range(64)]
    order = layout_of(lengths, BatchLimits(8, None, 4096, pads=False)).order
    shares = [
        sum(lengths[index] for index in order[first : first + 8] if index is not None) for first in range(0, 64, 8)
    ]
    assert max(shares) < 1.05 * min(shares)
    given = [sum(lengths[first : first + 8]) for first in range(0, 64, 8)]
    assert max(given) > 1.3 * min(given)


def test_micro_batches_are_as_large_as_they_may_be() -> None:
    assert layout_of([100] * 16, BatchLimits(1, 8, None, pads=True)).rows == 8
    assert layout_of([100] * 16, BatchLimits(1, None, 800, pads=True)).rows == 8
    assert layout_of([100] * 16, BatchLimits(8, 16, None, pads=True)).rows == 2
    assert layout_of([100] * 16, BatchLimits(1, 6, None, pads=False)).rows == 6
    assert layout_of([100] * 16, BatchLimits(1, None, 800, pads=False)).rows is None


@pytest.mark.parametrize(
    ("overrides", "pads"),
    [
        (("actor_rollout_ref.model.use_remove_padding=True",), False),
        (("actor_rollout_ref.model.use_remove_padding=False",), True),
        (("model_engine=megatron", "actor_rollout_ref.model.use_remove_padding=False"), True),
        (("model_engine=megatron", "actor_rollout_ref.actor.megatron.use_remove_padding=False"), False),
        (
            (
                *("model_engine=megatron", "actor_rollout_ref.model.use_remove_padding=False"),
                "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=2",
            ),
            False,
        ),
    ],
)
def test_an_engine_pads_where_the_models_key_says_so(overrides: tuple[str, ...], pads: bool) -> None:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        assert pads_rows(hydra.compose("ppo_trainer", list(overrides)).actor_rollout_ref) == pads
