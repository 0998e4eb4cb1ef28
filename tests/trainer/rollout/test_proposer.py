"""Alternatives drawn from a policy: temperatures take turns, and a state that is too long gets none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.prompts import BARE_FORM

from verl_ee.config import CollectConfig
from verl_ee.experience.proposers import ProposalBatch, ProposalRequest
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts.state import State
from verl_ee.trainer.rollout.proposer import PolicyProposer

REQUEST = ProposalRequest(StateRef(2, 4), "train/7", State("find a mug", (), "A room.", ("look",)), "open drawer 1")


class Samples:
    """A sampler whose responses say to which prompt, at which temperature and as which copy they were drawn."""

    async def sample(self, prompts: list[list[int]], n: int, params: dict[str, Any]) -> list[list[list[int]]]:
        return [[[prompt[0], int(10 * params["temperature"]), copy] for copy in range(n)] for prompt in prompts]


def proposer(prompts: list[list[int]], **values: Any) -> PolicyProposer:
    """Return a proposer whose states have these prompts, of 8 tokens at most."""
    config = CollectConfig.model_validate({"alternatives": "policy", "k": 5, "unlisted": "keep"} | values)
    lengths = iter(prompts)

    def decode(ids: Sequence[int]) -> str:
        return f"Action: press {'-'.join(map(str, ids))}"

    sampler: Any = Samples()
    return PolicyProposer(
        sampler,
        Encoder(lambda _: next(lengths), list, list, decode),
        config,
        {},
        BARE_FORM,
        "model@base",
        8,
        window=4,
    )


def test_temperatures_take_turns_and_every_draw_is_kept_with_its_own() -> None:
    batch = proposer([[1, 2], [3] * 9, [4]], temperatures=(0.5, 1.0)).propose([REQUEST] * 3)
    first, too_long, last = batch.alternatives
    expected = [f"press {{}}-{temperature}-{draw // 2}" for draw, temperature in enumerate([5, 10, 5, 10, 5])]
    assert [item.action for item in first] == [text.format(1) for text in expected]
    assert [item.action for item in last] == [text.format(4) for text in expected]
    assert [item.sampling for item in first] == [
        f'{{"temperature": {0.5 if draw % 2 == 0 else 1.0}, "draw": {draw}}}' for draw in range(5)
    ]
    assert too_long == ()
    # Three prompt tokens of two states, five times each; fifteen tokens written in each of them.
    assert (batch.prompt_tokens, batch.completion_tokens) == (15, 30)


def test_temperatures_behind_the_last_draw_are_not_used() -> None:
    batch = proposer([[1]], temperatures=(0.5, 1.0, 2.0), draws=2).propose([REQUEST])
    assert [item.action for item in batch.alternatives[0]] == ["press 1-5-0", "press 1-10-0"]


def test_without_a_state_that_fits_nothing_is_drawn() -> None:
    batch = proposer([[3] * 9]).propose([REQUEST])
    assert (batch.alternatives, batch.prompt_tokens, batch.completion_tokens) == (((),), 0, 0)


class Scripted:
    """A sampler whose responses come from a script, draw by draw, and that counts the calls."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.sizes = list(texts), list[int]()

    async def sample(self, prompts: list[list[int]], n: int, _: dict[str, Any]) -> list[list[list[int]]]:
        self.sizes.append(n)
        return [[[ord(letter) for letter in self.texts.pop(0)] for _ in range(n)] for _ in prompts]


def proposed(sampler: Scripted, request: ProposalRequest, **values: Any) -> ProposalBatch:
    config = CollectConfig.model_validate({"alternatives": "policy", "k": 2} | values)
    given: Any = sampler
    encoder = Encoder(lambda _: [1], list, list, lambda ids: "".join(map(chr, ids)))
    return PolicyProposer(given, encoder, config, {}, BARE_FORM, "model@base", 8, window=4).propose([request])


SILENT = replace(REQUEST, state=State("find a mug", (), "A room."))


def test_where_nothing_is_listed_draws_go_on_until_enough_alternatives_differ() -> None:
    sampler = Scripted(
        "Hm.", "Action: sing", "Action: sing", "Action: open drawer 1", "Action: hum", "Action: run", "x"
    )
    batch = proposed(sampler, SILENT)
    assert [item.action for item in batch.alternatives[0]] == ["sing", "hum"]
    assert sampler.sizes == [2, 2, 2]
    assert batch.responses == (6,)
    assert [(item.text, item.reason) for item in batch.unused[0]] == [
        ("Hm.", "no action"),
        ("Action: sing", "an action drawn before"),
        ("Action: open drawer 1", "the expert's own action"),
    ]


@pytest.mark.parametrize(("draws", "sizes"), [(None, [2, 2, 2, 2]), (5, [2, 2, 1]), (1, [1])])
def test_draws_end_at_their_limit(draws: int | None, sizes: list[int]) -> None:
    sampler = Scripted(*["Hm."] * 8)
    batch = proposed(sampler, SILENT, draws=draws)
    assert sampler.sizes == sizes
    assert batch.alternatives == ((),)
    assert len(batch.unused[0]) == batch.responses[0] == sum(sizes)


@pytest.mark.parametrize(("draws", "sizes"), [(None, [2]), (6, [2, 2, 2])])
def test_where_actions_are_listed_more_is_drawn_only_if_asked_for(draws: int | None, sizes: list[int]) -> None:
    sampler = Scripted(*["Hm."] * 6)
    state = replace(REQUEST.state, admissible_actions=("look", "wait", "open drawer 1"))
    batch = proposed(sampler, replace(REQUEST, state=state), draws=draws, unlisted="replace")
    assert sampler.sizes == sizes
    assert {(item.action, item.proposer) for item in batch.alternatives[0]} == {
        ("look", "admissible"),
        ("wait", "admissible"),
    }


def test_a_listed_action_that_is_written_loosely_is_proposed_as_it_is_listed() -> None:
    batch = proposed(Scripted("LOOK.", "- look"), REQUEST, unlisted="replace", k=1, draws=2)
    assert [(item.action, item.proposer) for item in batch.alternatives[0]] == [("look", "policy")]
