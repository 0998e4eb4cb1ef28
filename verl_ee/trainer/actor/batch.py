"""Examples as the batch that verl's `update_actor` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode

from verl_ee.objectives.examples import Example
from verl_ee.objectives.loss import OBJECTIVES
from verl_ee.trainer.actor.micro_batches import BatchLimits, layout_of
from verl_ee.trainer.protocols import Numbers


def to_batch(examples: Sequence[Example], limits: BatchLimits, pad_token_id: int) -> TensorDict:
    """Return one mini-batch for one optimizer step.

    Args:
        examples: at least one.
        limits: workers and micro-batches; rows that fill up have one token, of which nothing is learned.
        pad_token_id: token of the padding where the engine does not remove it.

    Returns:
        Nested `input_ids`, `position_ids`, `loss_mask` (rows, tokens); `example_weight`, `objective` (rows,); and the
        settings with which one call is one optimizer step.
    """
    layout = layout_of([len(example) for example in examples], limits)
    filler = Example((pad_token_id,), (), examples[0].objective)
    rows = [filler if index is None else examples[index] for index in layout.order]
    tokens = [torch.tensor(row.prompt + row.target) for row in rows]
    masks = [torch.tensor(_mask(row)) for row in rows]
    batch = TensorDict(
        {
            "input_ids": _nested(tokens),
            "position_ids": _nested([torch.arange(len(row)) for row in rows]),
            "loss_mask": _nested(masks),
            "example_weight": torch.tensor([row.weight for row in rows], dtype=torch.float32),
            "objective": torch.tensor([OBJECTIVES.index(row.objective) for row in rows]),
        },
        batch_size=[len(rows)],
    )
    tu.assign_non_tensor(
        batch,
        temperature=1.0,
        pad_mode=DatasetPadMode.NO_PADDING,
        pad_token_id=pad_token_id,
        global_batch_size=len(rows),
        mini_batch_size=len(rows),
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        calculate_entropy=False,
        distillation_only=False,
    )
    if layout.rows is not None:
        tu.assign_non_tensor(batch, use_dynamic_bsz=False, micro_batch_size_per_gpu=layout.rows)
    return batch


def sums_of(metrics: Mapping[str, Numbers]) -> dict[str, float]:
    """Add up the summed metrics of `update_actor` over micro-batches and workers."""
    return {key: float(sum(numbers_in(value))) for key, value in metrics.items() if key.startswith("sums/")}


def numbers_in(value: Numbers) -> list[float]:
    """Return the numbers of a metric of verl, over micro-batches and workers."""
    if isinstance(value, SupportsFloat):
        return [float(value)]
    return [number for item in value for number in numbers_in(item)]


def _mask(example: Example) -> list[int]:
    """Return 1 for each token that is learned, else 0."""
    learned = [True] * len(example.target) if example.learned is None else example.learned
    return [0] * len(example.prompt) + [int(is_learned) for is_learned in learned]


def _nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
