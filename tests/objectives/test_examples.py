"""Examples, their order, the learning rate and the loss, against counts and numbers computed here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.game_collections import write_here

from verl_ee.config import Objective, StageConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.store import read_branches
from verl_ee.objectives.examples import Encoder, Example, imitation, within_length, world_model
from verl_ee.objectives.loss import OBJECTIVES, SupervisedLoss, likeliest, loss_and_metrics, mean_metrics
from verl_ee.objectives.schedule import batches, learning_rate, optimizer_steps_of
from verl_ee.prompts.text import Message, render_policy, render_world_model

END = 0
VOCABULARY, WIDTH = 11, 5


def text_ids(messages: list[Message]) -> list[int]:
    return [ord(letter) for message in messages for letter in f"{message['role']}:{message['content']}\n"]


ENCODER = Encoder(text_ids, lambda text: [*map(ord, text), END])


def target_text(example: Example) -> str:
    assert example.target[-1] == END
    return "".join(map(chr, example.target[:-1]))


def stage(**values: Any) -> StageConfig:
    return StageConfig(**{"objectives": ("imitation",), "epochs": 1, "lr": 1.0, "batch_size": 4} | values)


def numbered(count: int) -> list[Example]:
    return [Example((1,), (index,), "imitation", provenance=str(index)) for index in range(count)]


@pytest.fixture
def trajectories() -> list[ExpertTrajectory]:
    return [Household().expert_trajectory(f"train/{index}") for index in range(3)]


def test_imitation_has_one_example_per_step(trajectories: list[ExpertTrajectory]) -> None:
    first = trajectories[1].steps[0]
    thinking = replace(trajectories[1], steps=(replace(first, thought="Let me look."), *trajectories[1].steps[1:]))
    experts = [trajectories[0], thinking]
    examples = list(imitation(experts, ENCODER, 2))
    states = [state for trajectory in experts for state in expert_states(trajectory, 2)]
    steps = [step for trajectory in experts for step in trajectory.steps]
    assert len(examples) == len(steps)
    for example, state, step in zip(examples, states, steps, strict=True):
        assert example.prompt == tuple(text_ids(render_policy(state)))
        assert target_text(example) == (f"{step.thought}\n" if step.thought else "") + f"Action: {step.action}"
        assert (example.objective, example.weight) == ("imitation", 1.0)
    assert examples[len(trajectories[0].steps)].provenance == "trajectory 1, step 0"


def test_the_world_model_has_one_example_per_branch(trajectories: list[ExpertTrajectory], tmp_path: Path) -> None:
    write_here(tmp_path, Household, trajectories, 2)
    outcomes = read_branches(tmp_path)
    examples = list(world_model(trajectories, outcomes, ENCODER, 3))
    assert len(examples) == len(outcomes) == 3 * sum(len(trajectory.steps) for trajectory in trajectories)
    for example, outcome in zip(examples, outcomes, strict=True):
        state = expert_states(trajectories[outcome.ref.trajectory], 3)[outcome.ref.step]
        assert example.prompt == tuple(text_ids(render_world_model(state, outcome.outcome.action)))
        assert target_text(example) == f"<observation> {outcome.outcome.observation} </observation>"
        assert example.objective == "world_model"
        assert example.provenance.startswith(f"trajectory {outcome.ref.trajectory}, step {outcome.ref.step}, ")
    prompts = {example.prompt for example in examples}
    assert prompts.isdisjoint(example.prompt for example in imitation(trajectories, ENCODER, 3))


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "steps"),
    [(12, 4, 1, 3), (13, 4, 1, 4), (13, 4, 3, 12), (1, 16, 2, 2), (16, 16, 1, 1), (17, 16, 2, 4), (5, 1, 2, 10)],
)
def test_steps_are_counted_and_every_epoch_is_a_permutation(
    examples: int, batch_size: int, epochs: int, steps: int
) -> None:
    config, given = stage(batch_size=batch_size, epochs=epochs), numbered(examples)
    assert optimizer_steps_of(config, examples) == steps
    found = list(batches(config, given))
    assert len(found) == steps
    per_epoch = steps // epochs
    for epoch in range(epochs):
        part = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert all(len(batch) == batch_size for batch in part[:-1])
        assert 1 <= len(part[-1]) <= batch_size
        assert sorted(int(example.provenance) for batch in part for example in batch) == list(range(examples))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(**values: Any) -> list[str]:
        return [example.provenance for batch in batches(stage(**values), numbered(40)) for example in batch]

    both = order(epochs=2, seed=5)
    assert both == order(epochs=2, seed=5)
    assert both[:40] == order(epochs=1, seed=5) == order(epochs=1, seed=5, batch_size=7, lr=0.1)
    assert both[:40] != both[40:]
    assert both[:40] != order(epochs=1, seed=6)
    assert both[:40] != [str(index) for index in range(40)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 4),
        ({"schedule": "constant", "lr": 2e-5}, [2e-5] * 4),
        ({"schedule": "constant", "warmup_ratio": 0.5}, [1 / 3, 2 / 3, 1.0, 1.0]),
        ({"schedule": "constant", "warmup_ratio": 1.0}, [0.2, 0.4, 0.6, 0.8]),
        ({}, [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ({"lr": 4.0}, [4.0, 3.414213562373095, 2.0, 0.585786437626905]),
        ({}, [1.0]),
        ({}, [1.0, 0.5]),
        ({"warmup_ratio": 0.24}, [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ({"warmup_ratio": 0.2}, [0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ({"warmup_ratio": 0.4, "lr": 3.0}, [1.0, 2.0, 3.0, 2.25, 0.75]),
    ],
)
def test_the_learning_rate_is_what_the_formula_gives(values: dict[str, Any], expected: list[float]) -> None:
    config = stage(**values)
    found = [learning_rate(config, step, len(expected)) for step in range(len(expected))]
    assert found == pytest.approx(expected, rel=1e-12)


def sized(*lengths: int) -> list[Example]:
    return [
        Example((7,) * (length - 2), (8, 9), "imitation", provenance=f"example {index}")
        for index, length in enumerate(lengths)
    ]


def test_what_fits_is_kept_whole_and_what_does_not_is_counted() -> None:
    examples = sized(10, 11, 3, 30, 2)
    kept = within_length(examples, 10, 0.4, "imitation")
    assert [id(example) for example in kept.examples] == [id(examples[0]), id(examples[2]), id(examples[4])]
    assert kept.dropped == ["example 1: 11 tokens", "example 3: 30 tokens"]
    assert within_length(iter(examples), 30, 0.0, "imitation").examples == examples


def test_more_dropped_than_allowed_stops_the_stage() -> None:
    examples = sized(*[5] * 95, *range(20, 25))
    assert len(within_length(examples, 10, 0.05, "first").dropped) == 5
    with pytest.raises(ExampleError) as raised:
        within_length(examples, 10, 0.049, "first")
    message = str(raised.value)
    for word in (
        "'first'",
        "5 of 100",
        "10 tokens",
        "early_experience.max_dropped=0.049",
        "example 95: 20 tokens",
        "example 97: 22 tokens",
        "data.max_prompt_length",
        "early_experience.history_length",
    ):
        assert word in message
    assert "example 98" not in message
    with pytest.raises(ExampleError):
        within_length(sized(5, 11), 10, 0.0, "first")


def test_a_stage_with_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ExampleError, match="'second' has no examples"):
        within_length([], 10, 1.0, "second")
    with pytest.raises(ExampleError, match="second"):
        within_length(sized(11, 12), 10, 1.0, "second")


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
        loss, found = micro_batch(batch, rows, head)
        assert loss.dtype == torch.float32
        loss.backward()
        total += loss.item()
        metrics.update(found)
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
    found = likeliest(logits)
    assert found.tolist() == [guesses.tolist()]
    output = {
        "log_probs": nested([-torch.ones(4), -2 * torch.ones(3)]),
        "likeliest": nested([found[0, :4], found[0, 4:]]),
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


def test_every_objective_has_an_index() -> None:
    assert sorted(OBJECTIVES) == sorted(get_args(Objective))
