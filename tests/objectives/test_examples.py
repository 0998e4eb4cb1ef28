"""Examples: rows as token ids, and the limit on their length."""

from __future__ import annotations

import pytest
from support.stage_worlds import ENCODER, text_of

from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Example, LengthLimits, encode, within_length
from verl_ee.objectives.rows import Row


def test_an_example_has_the_token_ids_of_its_row() -> None:
    prompt = ({"role": "system", "content": "Act."}, {"role": "user", "content": "Where?"})
    rows = [Row(prompt, "Here.", "imitation", "trajectory 0, step 1"), Row(prompt[1:], "There.", "world_model")]
    first, second = encode(rows, ENCODER)
    assert text_of(first.prompt) == "system:Act.\nuser:Where?\n"
    assert text_of(first.target) == "Here."
    assert (first.objective, first.provenance) == ("imitation", "trajectory 0, step 1")
    assert (first.weight, first.learned) == (1.0, None)
    assert len(first) == len(first.prompt) + len(first.target)
    assert (text_of(second.prompt), text_of(second.target)) == ("user:Where?\n", "There.")
    assert (second.objective, second.provenance) == ("world_model", "")


def sized(*lengths: int) -> list[Example]:
    return [
        Example((7,) * (length - 2), (8, 9), "imitation", provenance=f"example {index}")
        for index, length in enumerate(lengths)
    ]


def limits(example: int) -> LengthLimits:
    return LengthLimits(example, example, example)


def test_what_fits_is_kept_whole_and_what_does_not_is_counted() -> None:
    examples = sized(10, 11, 3, 30, 2)
    kept = within_length(examples, limits(10), 0.4, "imitation")
    assert [id(example) for example in kept.examples] == [id(examples[0]), id(examples[2]), id(examples[4])]
    assert kept.dropped == ["example 1: 11 of 10 tokens", "example 3: 30 of 10 tokens"]
    assert within_length(iter(examples), limits(30), 0.0, "imitation").examples == examples


def test_more_dropped_than_allowed_stops_the_stage() -> None:
    examples = sized(*[5] * 95, *range(20, 25))
    assert len(within_length(examples, limits(10), 0.05, "first").dropped) == 5
    with pytest.raises(ExampleError) as raised:
        within_length(examples, limits(10), 0.049, "first")
    message = str(raised.value)
    for word in (
        "'first'",
        "5 of 100",
        "of 10 tokens",
        "early_experience.max_dropped=0.049",
        "example 95: 20 of 10 tokens",
        "example 97: 22 of 10 tokens",
        "data.max_prompt_length",
        "early_experience.history_length",
    ):
        assert word in message
    assert "example 98" not in message
    with pytest.raises(ExampleError):
        within_length(sized(5, 11), limits(10), 0.0, "first")


def test_a_stage_with_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ExampleError, match="'second' has no examples"):
        within_length([], limits(10), 1.0, "second")
    with pytest.raises(ExampleError, match="second"):
        within_length(sized(11, 12), limits(10), 1.0, "second")


def test_what_the_policy_says_has_limits_of_its_own() -> None:
    mask = (True, True, False, True, True, True)
    own = [Example((1,), (2,) * 6, name, learned=mask) for name in ("imitation", "reflection", "world_model")]
    assert [example.longest_answer for example in own] == [3, 3, 3]
    for example, excess in zip(own, ["6 of 5 tokens behind the prompt"] * 2 + [""], strict=True):
        assert LengthLimits(9, 5, 9).excess(example) == excess
    for example, excess in zip(own, ["an answer of 3 tokens, of 2"] * 2 + [""], strict=True):
        assert LengthLimits(9, 9, 2).excess(example) == excess
    assert not any(map(LengthLimits(7, 6, 3).excess, own))
    assert Example((1,), (2,) * 6, "imitation").longest_answer == 6
