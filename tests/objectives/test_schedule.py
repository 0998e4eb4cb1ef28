"""The order of the examples and the learning rate, against counts and numbers computed here."""

from __future__ import annotations

from typing import Any

import pytest

from verl_ee.config import StageConfig
from verl_ee.objectives.examples import Example
from verl_ee.objectives.schedule import batches, learning_rate, most_examples, optimizer_steps_of, remaining_steps


def stage(**values: Any) -> StageConfig:
    return StageConfig(**{"objectives": ("imitation",), "epochs": 1, "lr": 1.0, "batch_size": 4} | values)


def numbered(count: int) -> list[Example]:
    return [Example((1,), (index,), "imitation", provenance=str(index)) for index in range(count)]


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "steps"),
    [(12, 4, 1, 3), (13, 4, 1, 4), (13, 4, 3, 12), (1, 16, 2, 2), (16, 16, 1, 1), (17, 16, 2, 4), (5, 1, 2, 10)],
)
def test_steps_are_counted_and_every_epoch_is_a_permutation(
    examples: int, batch_size: int, epochs: int, steps: int
) -> None:
    config = stage(batch_size=batch_size, epochs=epochs)
    assert optimizer_steps_of(config, examples) == steps
    taken = list(batches(config, numbered(examples)))
    assert len(taken) == steps
    per_epoch = steps // epochs
    for epoch in range(epochs):
        part = taken[epoch * per_epoch : (epoch + 1) * per_epoch]
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
    rates = [learning_rate(config, step, len(expected)) for step in range(len(expected))]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "taken", "left"),
    [
        ([10], 0, [10]),
        ([10], 4, [6]),
        ([10], 10, [1]),
        ([10, 30], 20, [5, 15]),
        ([10, 30], 0, [10, 30]),
        ([10, 30], 38, [1, 1]),
        ([10, 30], 99, [1, 1]),
        ([1, 1, 5], 3, [1, 1, 2]),
        ([1], 5, [1]),
        ([7, 7, 7], 10, [3, 4, 4]),
    ],
)
def test_stages_give_steps_in_proportion_and_keep_together_what_is_left(
    steps: list[int], taken: int, left: list[int]
) -> None:
    assert remaining_steps(steps, taken) == left
    assert sum(left) == max(len(steps), sum(steps) - taken)
    assert all(1 <= kept <= had for kept, had in zip(left, steps, strict=True))


def test_no_more_examples_are_learned_than_the_steps_allow_and_no_fewer() -> None:
    for stages in ([stage(batch_size=3, epochs=2)], [stage(batch_size=4), stage(batch_size=3, epochs=2)]):
        for steps in range(3, 40):
            count = most_examples(stages, steps)
            assert sum(optimizer_steps_of(item, count) for item in stages) <= steps
            assert sum(optimizer_steps_of(item, count + 1) for item in stages) > steps
    assert most_examples([stage(epochs=5)], 2) == 1
