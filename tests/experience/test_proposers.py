"""Alternatives, against a calculation by hand: which are taken, in what order, and that chance decides as it should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from support.games import expert
from support.prompts import BARE_FORM
from support.proposals import EXPERT, LISTED, actions, config, drawn, request

from verl_ee.envs import canonical_form
from verl_ee.envs.household.env import Household
from verl_ee.experience.policy_proposals import policy_proposals
from verl_ee.experience.proposers import (
    EXPERT_TOOL,
    listed_proposals,
    sample_admissible,
    seed_of,
    tool_of,
    visible_state,
)
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts.text import Message, state_text
from verl_ee.trainer.rollout.proposer import PolicyProposer

# From the environment's list


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 100])
def test_k_of_the_listed_actions_are_taken_without_replacement_and_never_the_expert_s(k: int) -> None:
    for seed in range(50):
        chosen = sample_admissible(LISTED, EXPERT, k, str(seed))
        assert len(chosen) == len(set(chosen)) == min(k, 5)
        assert set(chosen) <= set(LISTED) - {EXPERT}


@pytest.mark.parametrize("written", ["  open drawer 1\n", "OPEN drawer 1", "Open  Drawer\t1"])
def test_the_expert_s_action_is_left_out_however_the_environment_lets_it_be_written(written: str) -> None:
    form = canonical_form("verl_ee/Household-v0")
    assert sorted(sample_admissible(LISTED, written, 9, "0", form)) == sorted(set(LISTED) - {EXPERT})
    assert sorted(sample_admissible((*LISTED, written), EXPERT, 9, "0", form)) == sorted(set(LISTED) - {EXPERT})


@pytest.mark.parametrize("other", ["open drawer 1.", "'open drawer 1'", "open  drawer 1", "Open drawer 1"])
def test_without_a_form_of_its_own_only_outer_white_space_is_nothing(other: str) -> None:
    assert EXPERT in sample_admissible(LISTED, other, 9, "0")
    assert EXPERT not in sample_admissible(LISTED, f" {EXPERT} \n", 9, "0")


@pytest.mark.parametrize("listed", [(), (EXPERT,)])
def test_where_nothing_else_is_listed_there_is_no_alternative(listed: tuple[str, ...]) -> None:
    assert sample_admissible(listed, EXPERT, 3, "0") == []


def test_an_expert_that_does_what_is_not_listed_takes_no_place() -> None:
    assert sorted(sample_admissible(LISTED, "dance", 9, "0")) == sorted(LISTED)


def test_every_set_of_k_is_equally_likely() -> None:
    draws = 6000
    count = Counter(frozenset(sample_admissible(LISTED, EXPERT, 2, str(seed))) for seed in range(draws))
    sets = [frozenset(pair) for pair in combinations(sorted(set(LISTED) - {EXPERT}), 2)]
    assert set(count) == set(sets)
    # Chi-square with nine degrees of freedom: above 27.9 in one of a thousand, and the seeds are fixed.
    expected = draws / len(sets)
    assert sum((count[pair] - expected) ** 2 / expected for pair in sets) < 27.9
    # No place in the list is preferred either.
    first = Counter(sample_admissible(LISTED, EXPERT, 2, str(seed))[0] for seed in range(draws))
    assert sum((first[action] - draws / 5) ** 2 / (draws / 5) for action in set(LISTED) - {EXPERT}) < 18.5


def test_the_choice_is_the_same_in_every_process() -> None:
    chosen = sample_admissible(LISTED, EXPERT, 5, "0:train/7:4")
    script = f"""
from verl_ee.experience.proposers import sample_admissible
print(sample_admissible({LISTED!r}, {EXPERT!r}, 5, "0:train/7:4"))
"""
    for hashing in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hashing, "PYTHONPATH": ":".join(sys.path)},
        )
        assert run.stdout == f"{chosen}\n"


def test_seed_task_and_step_each_change_the_choice() -> None:
    trajectory = expert("game 1", 3, listed=40)
    listed = trajectory.steps[0].admissible_actions or ()

    def choice(step: int = 0, task: str = "game 1", **values: Any) -> list[str]:
        return actions(listed_proposals(config(**values), replace(trajectory, task=task), step, listed))

    first = choice()
    assert first == choice()
    for other in (choice(step=1), choice(task="game 2"), choice(seed=1)):
        assert other != first
    # What has nothing to do with the choice does not change it.
    assert choice(workers=4, restore="replay", temperatures=(0.5,)) == first
    assert seed_of(config(seed=5), "game 1", 2) == "5:game 1:2"


@pytest.mark.parametrize("k", [1, 3, 8])
def test_admissible_takes_k_and_exhaustive_takes_all_but_the_expert(k: int) -> None:
    for task in ("train/0", "seen/3", "unseen/5"):
        trajectory = Household().expert_trajectory(task)
        for step, given in enumerate(trajectory.steps):
            assert given.admissible_actions is not None
            listed = given.admissible_actions
            others = [action for action in listed if action != given.action]
            every = listed_proposals(config(alternatives="exhaustive", k=k), trajectory, step, listed)
            some = listed_proposals(config(k=k), trajectory, step, listed)
            assert sorted(actions(every)) == sorted(others)
            assert len(some) == len(set(actions(some))) == min(k, len(others))
            assert set(actions(some)) <= set(others)
            assert {(item.proposer, item.policy, item.sampling) for item in every} == {("exhaustive", "", "")}
            assert {(item.proposer, item.policy, item.sampling) for item in some} == {("admissible", "", "")}
    # The order is no longer that of the list.
    trajectory = expert(listed=30)
    listed = trajectory.steps[0].admissible_actions or ()
    assert actions(listed_proposals(config(alternatives="exhaustive"), trajectory, 0, listed)) != list(listed[1:])


# Without the expert's tool


@pytest.mark.parametrize(
    ("action", "tool"),
    [
        ("go to desk 1", "go"),
        ("  'open   drawer 1'. ", "open"),
        ('"', ""),
        ("look", "look"),
        ("search[red mug]", "search"),
        ("mv(source='a', destination='b')", "mv"),
        ("<search>red mug</search>", "search"),
        ('{"name": "find_user", "arguments": {"name": "Bob"}}', "find_user"),
        ('{"arguments": {"name": "Bob"}, "name": "find_user"}', "find_user"),
        ('{"arguments": {}, "name": "cancel order"}', "cancel order"),
        ('<tool_call>\n{"name": "get-item",\n "arguments": {}}\n</tool_call>', "get-item"),
        ('{"arguments": {}}', "arguments"),
        ('{"name": 3}', "name"),
        ('{"name": "cut', "name"),
        ('["name"]', "name"),
        ("[" * 100_000, ""),
        ("", ""),
        ("?!", ""),
    ],
)
def test_the_tool_of_an_action_is_the_name_of_its_call_or_its_first_word(action: str, tool: str) -> None:
    assert tool_of(action) == tool


WITHHELD = ("look", "go to desk 1", "take mug 1 from shelf 1", "inventory")
"""Of the listed actions, those that do not open anything."""


@pytest.mark.parametrize("alternatives", ["admissible", "exhaustive"])
def test_no_listed_alternative_uses_the_expert_s_tool_if_that_is_withheld(alternatives: str) -> None:
    trajectory = replace(expert("game 1", 1), steps=(replace(expert("game 1", 1).steps[0], action=EXPERT),))
    given = config(k=9, alternatives=alternatives, withhold_expert_tool=True)
    assert sorted(actions(listed_proposals(given, trajectory, 0, LISTED))) == sorted(WITHHELD)
    free = config(k=9, alternatives=alternatives)
    assert sorted(actions(listed_proposals(free, trajectory, 0, LISTED))) == sorted(set(LISTED) - {EXPERT})


def test_withholding_takes_k_of_what_is_left() -> None:
    trajectory = replace(expert("game 1", 1), steps=(replace(expert("game 1", 1).steps[0], action=EXPERT),))
    for seed in range(30):
        chosen = actions(listed_proposals(config(k=2, withhold_expert_tool=True, seed=seed), trajectory, 0, LISTED))
        assert len(chosen) == len(set(chosen)) == 2
        assert set(chosen) <= set(WITHHELD)


@pytest.mark.parametrize("unlisted", ["keep", "replace"])
def test_no_draw_and_no_addition_uses_the_expert_s_tool_if_that_is_withheld(unlisted: str) -> None:
    samples = drawn("open drawer 10", "'open window'", "sing", "look", "open", "inventory")
    given = config(k=9, alternatives="mixture", extra_admissible=9, unlisted=unlisted, withhold_expert_tool=True)
    chosen = policy_proposals(samples, given, request())
    assert list(chosen.own) == [*([samples[2]] if unlisted == "keep" else []), samples[3], samples[5]]
    assert set(actions(chosen.all)) == set(WITHHELD) | ({"sing"} if unlisted == "keep" else set())
    assert {item.action for item, reason in chosen.unused if reason == EXPERT_TOOL} == {
        *("open drawer 10", "'open window'", "open")
    }
    free = config(k=9, alternatives="mixture", extra_admissible=9, unlisted=unlisted)
    assert "open drawer 10" in actions(policy_proposals(samples, free, request()).own)


def test_calls_of_a_tool_are_left_out_whatever_their_arguments() -> None:
    calls = [json.dumps({"name": "cancel", "arguments": {"id": number}}) for number in range(3)]
    other = '{"name": "find", "arguments": {"id": 0}}'
    prompted = replace(request(None), expert_action=calls[0])
    given = config(k=9, alternatives="policy", withhold_expert_tool=True)
    assert actions(policy_proposals(drawn(*calls, other), given, prompted).all) == [other]
    assert actions(policy_proposals(drawn(*calls, other), config(k=9, alternatives="policy"), prompted).all) == [
        *calls[1:],
        other,
    ]


def test_a_policy_is_not_shown_what_is_withheld() -> None:
    given = config(alternatives="policy", withhold_expert_tool=True)
    assert visible_state(request(), given) == replace(request().state, admissible_actions=WITHHELD)
    assert visible_state(request(), config(alternatives="policy")) == request().state
    assert visible_state(request(None), given) == request(None).state


@pytest.mark.parametrize("withheld", [False, True])
def test_the_policy_of_a_job_is_asked_in_the_state_that_is_shown(withheld: bool) -> None:
    prompted: list[str] = []

    def prompt(messages: list[Message]) -> list[int]:
        prompted.append(messages[-1]["content"])
        return [1, 2]

    class Drawn:
        async def sample(self, prompts: list[list[int]], n: int, _: dict[str, Any]) -> list[list[list[int]]]:
            return [[[len(prompted), 3, 3]] * n for _ in prompts]

    answers = iter(["Action: open drawer 10", "I look.\nAction: look", "Nothing."])
    given = config(alternatives="policy", withhold_expert_tool=withheld)
    proposer = PolicyProposer(
        Drawn(), Encoder(prompt, list, list, lambda _: next(answers)), given, {}, BARE_FORM, "model@base", 99, 4
    )  # type: ignore[arg-type]
    chosen = proposer.propose([request()])
    assert prompted == [state_text(visible_state(request(), given))]
    assert ("open drawer" in prompted[0]) != withheld
    assert [actions(item) for item in chosen.alternatives] == [["look"] if withheld else ["open drawer 10", "look"]]
    assert (chosen.prompt_tokens, chosen.completion_tokens) == (6, 9)
