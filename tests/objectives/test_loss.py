"""The loss and its metrics, against a plain computation row by row."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
import torch

from verl_ee.config import Objective
from verl_ee.objectives.loss import OBJECTIVES, SupervisedLoss, likeliest, loss_and_metrics, mean_metrics

VOCABULARY, WIDTH = 11, 5


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


Batch = dict[str, Any]


@pytest.fixture
def batch() -> Batch:
    """Seven rows of random tokens: prompts and targets of several lengths, a row with a gap, and one of padding."""
    torch.manual_seed(0)
    prompts, targets = [3, 1, 8, 2, 5, 4, 2], [4, 1, 2, 9, 1, 3, 6]
    masks = [torch.tensor([0] * a + [1] * b) for a, b in zip(prompts, targets, strict=True)]
    masks[3][5] = 0
    masks[6].zero_()
    return {
        "ids": [torch.randint(VOCABULARY, (len(mask),)) for mask in masks],
        "hidden": [torch.randn(len(mask), WIDTH) for mask in masks],
        "masks": masks,
        "weights": torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.5, 1.0]),
        "objectives": torch.tensor([0, 1, 1, 2, 1, 0, 1]),
        "head": torch.randn(VOCABULARY, WIDTH),
    }


def plain(batch: Batch, head: torch.Tensor) -> tuple[torch.Tensor, Counter[str]]:
    """Loss and sums of a mini-batch, row by row: a token is predicted from what comes before it."""
    total, sums = head.new_zeros(()), Counter[str]()
    for row, (ids, mask) in enumerate(zip(batch["ids"], batch["masks"], strict=True)):
        logits = batch["hidden"][row].to(head.dtype) @ head.T
        nll = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        learned = mask[1:].bool()
        total = total + (nll[learned] * batch["weights"][row]).sum()
        name = ("world_model", "imitation", "reflection")[batch["objectives"][row]]
        sums[f"sums/{name}/nll"] += nll[learned].sum().item()
        sums[f"sums/{name}/tokens"] += int(learned.sum())
        sums[f"sums/{name}/correct"] += int((logits[:-1].argmax(-1) == ids[1:])[learned].sum())
    return total / sum(int(mask.sum()) for mask in batch["masks"]), sums


def micro_batch(
    batch: Batch, rows: list[int], head: torch.Tensor, dp_size: int = 1
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss and metrics of some rows, through both calls that an engine makes."""
    ids = torch.cat([batch["ids"][row] for row in rows])
    logits = torch.cat([batch["hidden"][row] for row in rows]) @ head.T
    data = {
        "input_ids": nested([batch["ids"][row] for row in rows]),
        "loss_mask": nested([batch["masks"][row] for row in rows]),
        "example_weight": batch["weights"][rows],
        "objective": batch["objectives"][rows],
        "batch_num_tokens": sum(int(mask.sum()) for mask in batch["masks"]),
        "dp_size": dp_size,
    }
    offsets = data["input_ids"].offsets()
    # What an engine puts at the last token of a row is the probability of some other row's token: it must not matter.
    log_probs = torch.log_softmax(logits, -1).gather(1, torch.roll(ids, -1)[:, None])[:, 0]
    loss = SupervisedLoss()
    outputs = loss(student_logits=logits[None], data=data)
    assert outputs["likeliest"].shape == (1, len(ids))
    assert not outputs["likeliest"].requires_grad
    model_output = {
        "log_probs": torch.nested.nested_tensor_from_jagged(log_probs, offsets),
        "likeliest": torch.nested.nested_tensor_from_jagged(outputs["likeliest"][0], offsets),
    }
    return loss(model_output=model_output, data=data, dp_group=None)


SPLITS = [
    [[0, 1, 2, 3, 4, 5, 6]],
    [[0], [1], [2], [3], [4], [5], [6]],
    [[6, 5, 4], [3, 2], [1, 0]],
    [[3], [0, 1, 2, 4, 5, 6]],
    [[1, 4], [0, 6, 2], [5, 3]],
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_loss_and_gradient_do_not_depend_on_the_split(batch: Batch, split: list[list[int]]) -> None:
    exact = batch["head"].double().requires_grad_()
    expected, sums = plain(batch, exact)
    expected.backward()

    head = batch["head"].clone().requires_grad_()
    total, metrics = 0.0, Counter[str]()
    for rows in split:
        loss, sums_of_rows = micro_batch(batch, rows, head)
        assert loss.dtype == torch.float32
        loss.backward()
        total += loss.item()
        metrics.update(sums_of_rows)
    assert total == pytest.approx(expected.item(), rel=1e-6)
    assert exact.grad is not None
    assert head.grad is not None
    assert (head.grad.double() - exact.grad).norm() < 1e-6 * exact.grad.norm()
    assert metrics == pytest.approx(sums, rel=1e-6)


def test_the_mean_over_workers_is_the_loss_of_the_whole_mini_batch(batch: Batch) -> None:
    expected, _ = plain(batch, batch["head"].double())
    workers = [[[0, 3], [6]], [[1, 2], [4, 5]]]
    shares = [sum(micro_batch(batch, rows, batch["head"], dp_size=2)[0].item() for rows in mine) for mine in workers]
    assert sum(shares) / 2 == pytest.approx(expected.item(), rel=1e-6)


def test_a_row_counts_with_its_weight(batch: Batch) -> None:
    alone = [[row == other for other in range(7)] for row in range(7)]
    shares = []
    for row in range(7):
        batch["weights"] = torch.tensor(alone[row], dtype=torch.float32)
        shares.append(micro_batch(batch, list(range(7)), batch["head"])[0].item())
    assert shares[6] == 0.0
    assert min(shares[:6]) > 0.0
    batch["weights"] = torch.tensor([0.0, 2.0, 0.0, 0.5, 0.0, 3.0, 9.0])
    mixed = micro_batch(batch, list(range(7)), batch["head"])[0].item()
    assert mixed == pytest.approx(2.0 * shares[1] + 0.5 * shares[3] + 3.0 * shares[5], rel=1e-6)


def test_nothing_flows_back_from_prompts_padding_and_row_ends(batch: Batch) -> None:
    batch["hidden"] = [hidden.requires_grad_() for hidden in batch["hidden"]]
    micro_batch(batch, list(range(7)), batch["head"])[0].backward()
    for row, (hidden, mask) in enumerate(zip(batch["hidden"], batch["masks"], strict=True)):
        moved = hidden.grad.abs().sum(-1) > 0
        follows = torch.cat([mask[1:].bool(), torch.tensor([False])])
        assert moved.tolist() == (follows & (batch["weights"][row] > 0)).tolist()


def test_token_accuracy_is_the_share_of_likeliest_tokens(batch: Batch) -> None:
    rows = [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9, 2])]
    guesses = torch.tensor([1, 4, 0, 0, 9, 0, 0])
    logits = torch.nn.functional.one_hot(guesses, VOCABULARY).float()[None]
    data = {
        "input_ids": nested(rows),
        "loss_mask": nested([torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1])]),
        "example_weight": torch.ones(2),
        "objective": torch.tensor([0, 1]),
        "batch_num_tokens": 5,
        "dp_size": 1,
    }
    likeliest_tokens = likeliest(logits)
    assert likeliest_tokens.tolist() == [guesses.tolist()]
    output = {
        "log_probs": nested([-torch.ones(4), -2 * torch.ones(3)]),
        "likeliest": nested([likeliest_tokens[0, :4], likeliest_tokens[0, 4:]]),
    }
    loss, metrics = loss_and_metrics(output, data)
    assert loss.item() == pytest.approx((3 * 1 + 2 * 2) / 5)
    assert mean_metrics(metrics) == pytest.approx(
        {
            "world_model/loss": 1.0,
            "world_model/token_accuracy": 2 / 3,
            "world_model/tokens": 3,
            "imitation/loss": 2.0,
            "imitation/token_accuracy": 1 / 2,
            "imitation/tokens": 2,
        }
    )


def test_an_objective_without_tokens_and_an_accuracy_that_was_not_measured_are_left_out() -> None:
    sums = {"sums/imitation/tokens": 4.0, "sums/imitation/nll": 2.0, "sums/world_model/tokens": 0.0}
    assert mean_metrics(sums | {"sums/world_model/nll": 0.0}) == {"imitation/loss": 0.5, "imitation/tokens": 4.0}
    assert mean_metrics({}) == {}


def test_an_empty_mini_batch_is_refused(batch: Batch) -> None:
    batch["masks"] = [torch.zeros_like(mask) for mask in batch["masks"]]
    with pytest.raises(ValueError, match="no learned token"):
        micro_batch(batch, [0, 1], batch["head"])


def test_a_micro_batch_without_learned_tokens_adds_nothing(batch: Batch) -> None:
    head = batch["head"].clone().requires_grad_()
    loss, metrics = micro_batch(batch, [6], head)
    loss.backward()
    assert loss.item() == 0.0
    assert head.grad is not None
    assert not head.grad.any()
    assert not any(metrics.values())


def test_every_objective_has_the_index_of_its_place_in_the_config() -> None:
    assert OBJECTIVES == get_args(Objective) == ("world_model", "imitation", "reflection")
