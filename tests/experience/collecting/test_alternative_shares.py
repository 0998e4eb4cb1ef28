"""Budgets of alternatives: a set with too few of them stops the run, with the reason and three responses."""

from __future__ import annotations

from typing import Any

import pytest

from verl_ee.config import CollectConfig
from verl_ee.errors import BranchError
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.collecting.alternative_shares import CAUSES, EARLY_STATES, AlternativeShares
from verl_ee.experience.proposers import EXPERT_ACTION, NO_ACTION, REASONS, REPEATED, UNLISTED, UnusedResponse


def shares(**config: Any) -> AlternativeShares:
    return AlternativeShares(CollectConfig.model_validate({"alternatives": "policy", "k": 4} | config))


def message(judge: AlternativeShares, counts: AlternativeCounts) -> str:
    with pytest.raises(BranchError) as raised:
        judge.check(counts)
    return str(raised.value)


@pytest.mark.parametrize(("own", "fine"), [(19, False), (20, True), (100, True)])
def test_a_policy_has_to_write_its_share_itself(own: int, fine: bool) -> None:
    counts = AlternativeCounts(100, own, 100, 400, 300)
    if fine:
        shares().check(counts)
        return
    text = message(shares(), counts)
    assert text.startswith("The policy itself wrote 19 of 100 alternatives that were possible (19.0 %), fewer than")
    assert "--min-own=0.2" in text
    assert "300 of 400 responses hold no action" in text


@pytest.mark.parametrize(("filled", "fine"), [(49, False), (50, True)])
@pytest.mark.parametrize("alternatives", ["policy", "admissible", "exhaustive"])
def test_any_set_has_to_have_its_share_in_the_end(alternatives: str, filled: int, fine: bool) -> None:
    judge, counts = shares(alternatives=alternatives), AlternativeCounts(100, 40, filled, 0, 0)
    if fine:
        judge.check(counts)
    else:
        assert "49 of 100 alternatives that were possible were found, fewer than --min-filled=0.5" in message(
            judge, counts
        )


def test_listed_alternatives_are_nobody_s_own() -> None:
    shares(alternatives="admissible").check(AlternativeCounts(100, 0, 100))


def test_nothing_is_asked_of_a_set_without_alternatives() -> None:
    shares(k=0).check(AlternativeCounts())


@pytest.mark.parametrize("reason", REASONS)
def test_the_message_names_the_likely_cause_and_shows_three_responses_in_full(reason: str) -> None:
    judge = shares()
    other = NO_ACTION if reason != NO_ACTION else REPEATED
    judge.add(AlternativeCounts(4, 0, 0, 4, 0), [UnusedResponse("rare", other)])
    long = "word " * 500
    for number in range(4):
        judge.add(AlternativeCounts(4, 0, 0, 1, 0), [UnusedResponse(f"{long}{number}", reason)])
    text = message(judge, judge.proposed)
    assert CAUSES[reason].split("{")[0] in text
    assert [f"a response ({reason}):\n{long}{number}" in text for number in range(4)] == [True, True, True, False]
    assert "rare" not in text


@pytest.mark.parametrize(("unasked", "told"), [(25, True), (15, True), (12, False), (0, False)])
def test_where_most_of_what_is_missing_could_not_be_sampled_the_message_says_so(unasked: int, told: bool) -> None:
    judge = shares()
    judge.add(AlternativeCounts(), [UnusedResponse("x", REPEATED)] * 99)
    text = message(judge, AlternativeCounts(100, 0, 100, 99, 0, unasked))
    assert (f"In {unasked} states nothing was sampled" in text) == told
    assert ("repeat an action" in text) != told


def test_a_policy_far_from_its_share_is_stopped_early_and_another_one_is_not() -> None:
    for own, stopped in ((0, True), (1, False)):
        # A quarter of what has to be reached in the end, or half of it and more.
        judge = shares(min_own=0.5)
        for _ in range(EARLY_STATES - 1):
            judge.add(AlternativeCounts(4, own, 4, 4, 0), [UnusedResponse("x", EXPERT_ACTION)])
            judge.check_early()
        judge.add(AlternativeCounts(4, own, 4, 4, 0), [UnusedResponse("x", UNLISTED)])
        if stopped:
            with pytest.raises(BranchError, match=rf"after {EARLY_STATES} states"):
                judge.check_early()
        else:
            judge.check_early()
