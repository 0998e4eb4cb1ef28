"""Mini-batches: which tokens the loss learns, and sums over micro-batches and workers."""

from __future__ import annotations

import pytest
import torch

from verl_ee.objectives.examples import Example
from verl_ee.objectives.loss import loss_and_metrics
from verl_ee.trainer.actor.batch import numbers_in, sums_of, to_batch
from verl_ee.trainer.actor.micro_batches import BatchLimits


def test_only_learned_tokens_count_in_the_loss() -> None:
    """Against the mean that equation 1 has, taken token by token."""
    rows = [
        Example((1, 2, 3), (4, 5, 6, 7), "imitation", learned=(True, False, False, True)),
        Example((1,), (2, 3), "imitation", weight=0.5),
        Example((9, 8), (7,), "world_model", learned=(True,)),
    ]
    batch = to_batch(rows, BatchLimits(2, 2, None, pads=False), 0)
    masks = [row.tolist() for row in batch["loss_mask"].unbind()]
    # The longest first; the last worker gets a row of one token, which is not learned.
    assert masks == [[0, 0, 0, 1, 0, 0, 1], [0], [0, 1, 1], [0, 0, 1]]
    generator = torch.Generator().manual_seed(3)
    log_probs = [-torch.rand(len(mask), generator=generator) for mask in masks]
    total, count = 0.0, 0
    for example, mask, values in zip([rows[0], rows[0], rows[1], rows[2]], masks, log_probs, strict=True):
        for position in range(1, len(mask)):
            if mask[position]:
                total -= example.weight * float(values[position - 1])
                count += 1
    assert count == 5
    data = dict(batch.items()) | {"batch_num_tokens": count, "dp_size": 1}
    output = {"log_probs": torch.nested.as_nested_tensor(log_probs, layout=torch.jagged)}
    loss, metrics = loss_and_metrics(output, data)
    assert float(loss) == pytest.approx(total / count)
    assert metrics["sums/imitation/tokens"] == 4.0
    assert metrics["sums/world_model/tokens"] == 1.0


def test_sums_are_added_over_micro_batches_and_workers() -> None:
    metrics = {"sums/imitation/nll": [[1.0, torch.tensor(2.0)], (3, [4.5])], "sums/imitation/tokens": 7, "lr": [0.1]}
    assert sums_of(metrics) == {"sums/imitation/nll": 10.5, "sums/imitation/tokens": 7.0}
    assert numbers_in([[0.5], 2]) == [0.5, 2.0]
