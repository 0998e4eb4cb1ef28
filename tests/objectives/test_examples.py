"""Examples: rows as token ids, and the limit on their length."""

from __future__ import annotations

import pytest
from support.stage_worlds import ENCODER, text_of

from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Example, LengthLimits, check_length, encode
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


def test_what_is_over_the_limits_is_said() -> None:
    assert [limits(10).excess(example) for example in sized(10, 11, 3)] == ["", "11 of 10 tokens", ""]


def test_more_dropped_than_allowed_stops_the_stage() -> None:
    shown = [f"example {index}: 20 of 10 tokens" for index in (95, 96, 97)]
    check_length(95, 5, shown, 0.05, "first")
    with pytest.raises(ExampleError) as raised:
        check_length(95, 5, shown, 0.049, "first")
    message = str(raised.value)
    for word in (
        "'first'",
        "5 of 100",
        "of 10 tokens",
        "early_experience.max_dropped=0.049",
        "example 95: 20 of 10 tokens",
        "example 97: 20 of 10 tokens",
        "data.max_prompt_length",
        "early_experience.history_length",
    ):
        assert word in message
    with pytest.raises(ExampleError):
        check_length(1, 1, shown, 0.0, "first")


def test_a_stage_with_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ExampleError, match="'second' has no examples"):
        check_length(0, 0, [], 1.0, "second")
    with pytest.raises(ExampleError, match="second"):
        check_length(0, 2, ["one", "two"], 1.0, "second")


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
