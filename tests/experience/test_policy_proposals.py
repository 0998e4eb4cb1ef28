"""Alternatives from what a policy sampled, against a calculation by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from support.proposals import EXPERT, LISTED, actions, config, drawn, request

from verl_ee.envs import canonical_form
from verl_ee.experience.policy_proposals import max_draws, policy_proposals, wanted
from verl_ee.experience.proposers import (
    EXPERT_ACTION,
    REPEATED,
    UNLISTED,
)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_the_first_k_draws_that_differ_are_taken_and_the_expert_s_is_none(k: int) -> None:
    samples = drawn("sing", " sing\n", EXPERT, "  dance. ", f" {EXPERT}", "sing", "dance.", "hum", "look")
    chosen = policy_proposals(samples, config(k=k, alternatives="policy"), request())
    # A draw is kept to the last space, with its proposer, its policy and its sampling.
    assert [samples.index(item) for item in chosen.own] == [0, 3, 7, 8][:k]
    assert chosen.added == ()
    reasons = {samples.index(item): reason for item, reason in chosen.unused}
    expected = {1: REPEATED, 2: EXPERT_ACTION, 4: EXPERT_ACTION, 5: REPEATED, 6: REPEATED if k > 1 else None}
    assert reasons == {index: reason for index, reason in expected.items() if reason}


@pytest.mark.parametrize("written", ["Open Drawer 1", " open  drawer 1 "])
def test_a_draw_is_the_expert_s_action_however_either_is_written(written: str) -> None:
    for alternatives in ("policy", "mixture"):
        given = config(alternatives=alternatives, extra_admissible=9, unlisted="replace")
        asked = replace(request(), expert_action=written, canonical=canonical_form("verl_ee/Household-v0"))
        chosen = policy_proposals(drawn(EXPERT, "OPEN DRAWER 1", "look"), given, asked).all
        assert EXPERT not in {item.action.lower() for item in chosen}
        assert chosen[0].action == "look"


def test_an_action_whose_name_holds_the_expert_s_is_another_one() -> None:
    samples = drawn("open drawer 10", "open drawer", "Open drawer 1", "open drawer 1!")
    chosen = policy_proposals(samples, config(k=9, alternatives="policy"), request())
    assert actions(chosen.own) == actions(tuple(samples))


@pytest.mark.parametrize("samples", [(), (EXPERT,), (EXPERT, f"  {EXPERT} ")])
def test_where_the_policy_has_only_the_expert_s_action_it_has_no_alternative(samples: tuple[str, ...]) -> None:
    kept = policy_proposals(drawn(*samples), config(alternatives="policy", unlisted="keep"), request())
    filled = policy_proposals(drawn(*samples), config(alternatives="policy", unlisted="replace"), request())
    assert kept.all == filled.own == ()
    assert len(filled.added) == 3
    assert set(actions(filled.added)) < set(LISTED) - {EXPERT}


def test_an_unlisted_action_is_kept() -> None:
    chosen = policy_proposals(drawn("sing", "look"), config(alternatives="policy", unlisted="keep"), request())
    assert [(item.action, item.proposer) for item in chosen.all] == [("sing", "policy"), ("look", "policy")]


@pytest.mark.parametrize("step", range(20))
def test_an_unlisted_action_is_left_out_and_listed_ones_that_nobody_uses_fill_up(step: int) -> None:
    given = config(k=4, alternatives="policy", unlisted="replace")
    samples = drawn("sing", "look", "dance", "go to desk 1")
    chosen = policy_proposals(samples, given, request(step=step))
    assert list(chosen.own) == [samples[1], samples[3]]
    assert [reason for _, reason in chosen.unused] == [UNLISTED, UNLISTED]
    assert set(actions(chosen.added)) < {"open drawer 10", "take mug 1 from shelf 1", "inventory"}
    assert len(set(actions(chosen.added))) == 2
    for item in chosen.added:
        assert (item.proposer, item.policy, item.sampling) == ("admissible", "", "")


def test_further_draws_take_the_places_of_unlisted_ones() -> None:
    samples = drawn("sing", "look", "dance", "inventory", "hum", "go to desk 1", "open drawer 10")
    given = config(k=3, alternatives="policy", unlisted="replace", draws=9)
    chosen = policy_proposals(samples, given, request())
    assert actions(chosen.own) == ["look", "inventory", "go to desk 1"]
    assert chosen.added == ()


def test_there_are_no_more_alternatives_than_other_listed_actions() -> None:
    given = config(k=9, alternatives="policy", unlisted="replace")
    chosen = policy_proposals(drawn("sing", "inventory", "dance", "hum"), given, request(("look", "inventory", EXPERT)))
    assert [(item.action, item.proposer) for item in chosen.all] == [("inventory", "policy"), ("look", "admissible")]
    assert policy_proposals(drawn("sing"), given, request((EXPERT,))).all == ()


def test_so_many_alternatives_are_asked_for_and_so_many_responses_sampled() -> None:
    few, silent = request(("look", "inventory", EXPERT)), request(None)
    for unlisted, asked in (("keep", 5), ("replace", 2)):
        given = config(k=5, alternatives="policy", unlisted=unlisted)
        assert wanted(given, few) == asked
        assert wanted(given, silent) == 5
        assert (max_draws(given, few), max_draws(given, silent)) == (5, 20)
        assert max_draws(config(k=5, temperatures=(0.0,), draws=9), silent) == 1
        limited = config(k=5, alternatives="policy", unlisted=unlisted, draws=7)
        assert (max_draws(limited, few), max_draws(limited, silent)) == (7, 7)


def test_replacing_is_by_chance_and_by_that_of_the_state() -> None:
    given = config(k=1, alternatives="policy", unlisted="replace")
    draws = 2000
    count = Counter(policy_proposals(drawn("sing"), given, request(step=step)).added[0].action for step in range(draws))
    assert set(count) == set(LISTED) - {EXPERT}
    assert sum((count[action] - draws / 5) ** 2 / (draws / 5) for action in count) < 18.5
    assert all(
        policy_proposals(drawn("sing"), given, request(step=step))
        == policy_proposals(drawn("sing"), given, request(step=step))
        for step in range(20)
    )
    other = config(k=1, alternatives="policy", unlisted="replace", seed=1)
    assert any(
        policy_proposals(drawn("sing"), given, request(step=step))
        != policy_proposals(drawn("sing"), other, request(step=step))
        for step in range(20)
    )


@pytest.mark.parametrize("extra", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("unlisted", ["keep", "replace"])
def test_a_mixture_adds_listed_actions_to_those_of_the_policy(extra: int, unlisted: str) -> None:
    given = config(k=3, alternatives="mixture", extra_admissible=extra, unlisted=unlisted)
    samples = drawn("sing", "look", " look ", EXPERT)
    chosen = policy_proposals(samples, given, request())
    assert list(chosen.own) == (samples[:2] if unlisted == "keep" else samples[1:2])
    # Four of the five other listed actions are not used; two fill up to K where "sing" is left out.
    filling = 0 if unlisted == "keep" else 2
    assert len(chosen.added) == min(4, filling + extra)
    assert len(set(actions(chosen.all))) == len(chosen.all)
    assert all(item.proposer == "admissible" and item.action in LISTED for item in chosen.added)
    assert not {EXPERT, "look"} & set(actions(chosen.added))


def test_only_a_mixture_adds_listed_actions() -> None:
    given = config(alternatives="policy", extra_admissible=3)
    assert actions(policy_proposals(drawn("sing"), given, request()).all) == ["sing"]


def test_without_a_list_nothing_is_replaced_and_nothing_added() -> None:
    for alternatives in ("policy", "mixture"):
        given = config(alternatives=alternatives, unlisted="replace", extra_admissible=5)
        chosen = policy_proposals(drawn("sing", EXPERT, "dance"), given, request(None))
        assert actions(chosen.all) == ["sing", "dance"]


def test_an_action_is_listed_in_whatever_form_the_environment_reads() -> None:
    given = config(k=9, alternatives="mixture", unlisted="replace", extra_admissible=9)
    samples = drawn("INVENTORY", " go  to desk 1 ", "Look")
    asked = replace(request(), canonical=canonical_form("verl_ee/Household-v0"))
    chosen = policy_proposals(samples, given, asked)
    assert list(chosen.own) == samples
    assert sorted(actions(chosen.added)) == ["open drawer 10", "take mug 1 from shelf 1"]
