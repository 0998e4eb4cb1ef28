"""The rule that writes rationales: it passes every gate, and says only what was executed."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.game_collections import write_here
from support.rationale_worlds import (
    HISTORY,
    TASKS,
    Branched,
    branch,
    household,  # noqa: F401
    situation,
    written,
)

from verl_ee.envs.household.env import Household
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.prompts.state import State, Turn


@pytest.mark.parametrize(("size", "k"), [("small", 0), ("small", 3), ("small", 8), ("medium", 3), ("large", 3)])
def test_what_the_rule_writes_about_households_passes_every_gate(size: str, k: int, tmp_path: Path) -> None:
    trajectories = [Household(size).expert_trajectory(task) for task in TASKS]
    write_here(tmp_path, lambda: Household(size), trajectories, max(k, 1))
    to_explain = situations(trajectories, read_branches(tmp_path), HISTORY, k)
    rationales = write_rationales(tmp_path, to_explain, TemplateWriter(), tuple(GATES))
    assert [(item.gate, item.reason, item.text) for item in rationales if not item.accepted] == []
    assert len(rationales) == sum(len(item.steps) for item in trajectories)
    # A long rationale takes weight from the action, and has to fit into a response.
    assert max(len(item.text.split()) for item in rationales) <= 60


def test_what_the_rule_writes_differs_from_state_to_state(household: Branched) -> None:
    texts = written_all(household)
    assert len(set(texts)) > 0.9 * len(texts)
    frames = {
        re.sub(r"'[^']*'", "X", re.sub(r"(?<=I see )[\w, ]+(?= of)|(?<=to |th )[\w, ]+(?=\.)", "Y", text))
        for text in texts
    }
    assert len(frames) >= 25


def written_all(household: Branched) -> list[str]:
    return [text for _, text in TemplateWriter().write(household.situations())]


def test_what_the_rule_writes_is_borne_out_by_what_was_executed(household: Branched) -> None:
    claims = 0
    for item in household.situations():
        outcomes = [executed.outcome for executed in (item.expert_branch, *item.alternatives)]
        by_action = {outcome.action: outcome for outcome in outcomes}
        task, now = words(item.state.task), words(item.state.observation)
        past = {item.state.observation, *(turn.observation for turn in item.state.history)}
        first, *rest = sentences_of(written(item))
        # What is called seen is, and nothing that the task names is overlooked.
        assert words(first) & task == (task & now) | ({"task"} & task)
        for sentence in rest:
            (action,) = re.findall(r"^'([^']*)'", sentence)
            outcome, claim = by_action[action], sentence.removeprefix(f"'{action}' ")
            new = words(outcome.observation) & task - now
            if claim == "should end the task.":
                assert outcome.done
            elif claim == "would show nothing new.":
                assert outcome.observation in past
            elif claim == "would add nothing to it.":
                assert not new
            elif claim == "can wait.":
                assert new
            elif claim.startswith("may bring me to "):
                assert words(claim) & task == new
            elif claim.startswith("should help with "):
                assert words(claim) & task == words(action) & task != set()
            elif claim == "may show me more.":
                assert outcome.observation not in past
            elif claim == "should bring me on.":
                assert not new | (words(action) & task)
            else:
                raise AssertionError(sentence)
            claims += 1
        # It comes to rest on the expert's action.
        assert sentence.startswith(f"'{item.expert_action}' ")
    assert claims > 500


def words(text: str) -> set[str]:
    """The words of a text that carry a meaning; the household has few others."""
    return set(re.findall(r"[a-z]{3,}", text.lower())) - {"and", "the", "under", "another", "you", "see", "nothing"}


def sentences_of(text: str) -> list[str]:
    return [f"{part}." for part in text.removesuffix(".").split(". ")]


def test_the_rule_says_why_each_kind_of_action_is_not_taken() -> None:
    state = State("find a coin", (Turn("A hall.", "go north"),), "A cellar with a chest.")
    expert = branch("open chest", "In it is a coin.")
    refused, ending = branch("fly", "You cannot.", valid=False), branch("drink poison", "You die.", done=True)
    back, other, wanted = branch("go south", "A hall."), branch("sing", "La."), branch("dig", "A coin!")
    expected = {
        refused: "'fly' would be refused.",
        ending: "'drink poison' would end it too early.",
        back: "'go south' would show nothing new.",
        other: "'sing' would add nothing to it.",
        wanted: "'dig' can wait.",
        branch("leap", "You cannot.", valid=None): "'leap' would add nothing to it.",
    }
    for alternative, sentence in expected.items():
        text = written(situation(state, expert, alternative))
        assert text == f"I see nothing of the task. {sentence} 'open chest' may bring me to coin."
    # Two kinds are enough, whatever else could be done; the first of each kind stands for it.
    text = written(situation(state, expert, other, branch("hum", "Mm."), refused, back, ending, wanted))
    assert text == "I see nothing of the task. 'sing' would add nothing to it. 'fly' would be refused. " + (
        "'open chest' may bring me to coin."
    )


@pytest.mark.parametrize(
    ("action", "observation", "done", "sentence"),
    [
        ("open chest", "In it is a coin.", False, "'open chest' may bring me to coin."),
        ("open chest", "A coin, a gold one.", True, "'open chest' should end the task."),
        ("wait", "You win.", True, "'wait' should end the task."),
        ("light match", "It is bright.", False, "'light match' may show me more."),
        ("go back", "A hall.", False, "'go back' should bring me on."),
        ("look for gold", "You see dust.", False, "'look for gold' should help with gold."),
    ],
)
def test_the_rule_says_what_is_to_be_expected_of_the_expert_s_action(
    action: str, observation: str, done: bool, sentence: str
) -> None:
    state = State("find a gold coin", (Turn("A hall.", "go north"),), "A cellar, and gold paint in it.")
    text = written(situation(state, branch(action, observation, "expert", done=done)))
    assert text == f"I see gold of the task. {sentence}"
