"""Prompt formats: what each asks, how each is answered, and the way back from an answer to the action."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_ee.config import PromptConfig
from verl_ee.errors import ConfigError
from verl_ee.prompts import Message, PromptFormat, Response, State, Turn, prompt_format
from verl_ee.prompts.formats import FORMATS, asked

LISTED = ("look", "open box 1", "go to desk 1")
FIRST = State("find a mug", (), "You are in a hall.", LISTED)
SECOND = State(
    "find a mug", (Turn("You are in a hall.", "open box 1", "Boxes hold mugs.", LISTED),), "It is empty.", ("look",), 1
)
CUT = State("find a mug", (Turn("It is empty.", "look", "", ("look",)),), "A hall.", None, 2)
ACTIONS = [
    "look",
    "SELECT name FROM t WHERE city = 'Bob'",
    'echo  "a  b"',
    "cd ..",
    "for i in x:\n    print(i)",
    "    indented\nnot",
    "say <b>hi</b>.",
]


def form_of(**values: object) -> PromptFormat:
    return prompt_format(PromptConfig.model_validate(values))


@pytest.fixture(params=list(FORMATS))
def form(request: pytest.FixtureRequest) -> PromptFormat:
    return form_of(format=request.param)


def user(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


@pytest.mark.parametrize("thought", [None, "I look.", "First.\nThen.\n\nSo."])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_comes_back_as_it_was_written(form: PromptFormat, action: str, thought: str | None) -> None:
    assert form.read(form.response(action, thought)) == Response(action, thought or "")


def test_a_listed_action_is_read_loosely_in_every_format(form: PromptFormat) -> None:
    for written in ("Open box 1.", "'open box 1'", "2. open box 1"):
        assert form.read(form.response(written, "So."), LISTED).action == "open box 1"
        assert form.read(written, LISTED).action == "open box 1"
    assert form.read("I do not know.", LISTED).action is None


def test_every_prompt_names_the_form_of_an_answer(form: PromptFormat) -> None:
    for state in (FIRST, SECOND, CUT):
        assert any(form.answer_mark in text for text in user(form.policy_prompt(state)))
        assert form.answer_mark in form.response("look")


def test_an_outcome_is_not_read_as_an_action(form: PromptFormat) -> None:
    for observation in ("You open box 1.\nIn it is a mug.", "look"):
        outcome = form.outcome(observation)
        assert observation in outcome
        assert form.read(outcome).action is None
        assert form.read(outcome, LISTED).action is None


def test_the_world_model_sees_the_state_and_no_thought_and_is_not_told_how_to_act(form: PromptFormat) -> None:
    messages = form.world_model_prompt(SECOND, "look")
    text = "\n".join(message["content"] for message in messages)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert text.endswith("\nAction: look")
    for part in ("find a mug", "You are in a hall.", "open box 1", "It is empty."):
        assert part in text
    if form.instruction:
        assert form.instruction not in text
    assert form.system not in text or not form.system


def test_tagged_shows_past_turns_by_number_and_actions_as_a_list() -> None:
    (message,) = form_of(format="tagged", instruction="Answer.").policy_prompt(SECOND)
    assert message["role"] == "user"
    assert message["content"].splitlines() == [
        "Your task is to: find a mug",
        "You have taken 1 steps. The latest 1 of them:",
        "[Observation 1: 'You are in a hall.', Action 1: 'open box 1']",
        "You are at step 2, and see: It is empty.",
        "Your admissible actions are: ['look'].",
        "",
        "Answer.",
    ]
    (message,) = form_of(format="tagged", instruction="").policy_prompt(CUT)
    assert "[Observation 2: 'It is empty.', Action 2: 'look']" in message["content"]
    assert message["content"].endswith("You are at step 3, and see: A hall.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>So.</think>\n<action>look</action>", Response("look", "So.")),
        ("<think>\nSo.\n</think>\n\n<action> look </action> And then?", Response("look", "So.")),
        ("So.</think><action>look</action>", Response("look", "So.")),
        ("I try.\n<action>look</action>", Response("look", "I try.")),
        (
            "<action>open box 1</action>, no: <action>look</action>",
            Response("look", "<action>open box 1</action>, no:"),
        ),
        ("<think>look", Response(None, "look")),
        ("<think>I try <action>go</action></think>", Response(None, "I try <action>go</action>")),
        ("<action>look", Response(None, "<action>look")),
        ("<action></action>", Response(None, "")),
    ],
)
def test_tagged_reads_the_last_action_between_tags(text: str, expected: Response) -> None:
    assert form_of(format="tagged").read(text) == expected


def test_react_is_a_chat_that_grows_by_what_was_answered() -> None:
    form = form_of(format="react")
    first, second = form.policy_prompt(FIRST), form.policy_prompt(SECOND)
    answer: Message = {"role": "assistant", "content": form.response("open box 1", "Boxes hold mugs.")}
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert second[:-1] == [*first, answer]
    assert answer["content"] == "Thought: Boxes hold mugs.\nAction: open box 1"
    assert second[-1]["content"] == "It is empty.\nYou can:\nlook"
    assert first[-1]["content"].startswith("Task: find a mug\n\nAnswer every observation")


def test_react_tells_task_and_form_also_where_the_history_is_cut() -> None:
    form = form_of(format="react")
    _, begin, _, latest = form.policy_prompt(CUT)
    assert begin["content"] == f"Task: find a mug\n\n{form.instruction}\n\nIt is empty.\nYou can:\nlook"
    assert latest["content"] == "A hall."


def test_react_reads_a_thought_with_and_without_its_mark() -> None:
    form = form_of(format="react")
    for text in ("Thought: So.\nAction: look", "So.\nAction: look", "Thought:\nSo.\n\nAction:\nlook"):
        assert form.read(text) == Response("look", "So.")


def test_react_leaves_reasoning_in_thinking_tokens_out_of_the_chat() -> None:
    form = form_of(format="react")
    text = "<think>\nHm. Action: jump\n</think>\n\n**Thought:** So.\nAction: look"
    assert form.read(text) == Response("look", "So.")
    assert (
        form_of(format="text").read("<think>\nHm. Action: jump\n</think>\n\nAction: look").thought == "Hm. Action: jump"
    )


def test_an_unfinished_thought_is_no_answer(form: PromptFormat) -> None:
    assert form.read("<think>\nI could open it.\nAction: open box 1", LISTED).action is None


def test_thoughts_of_the_past_are_shown_where_the_format_or_the_user_says_so(form: PromptFormat) -> None:
    name = next(name for name, kind in FORMATS.items() if type(form) is kind)
    shown = {
        value: "Boxes hold mugs." in json.dumps(form_of(format=name, thoughts_in_history=value).policy_prompt(SECOND))
        for value in (None, True, False)
    }
    assert shown == {None: name == "react", True: True, False: False}


def test_listed_actions_are_capped_by_rule_and_the_same_in_every_later_prompt() -> None:
    actions = tuple(f"press {number:03}" for number in range(300))
    state = State("t", (), "A panel.", actions)
    later = State("t", (Turn("A panel.", "press 007", "", actions),), "It hums.", actions, 1)
    for name in FORMATS:
        for rule in ("first", "sampled"):
            capped = form_of(format=name, max_listed=5, listed=rule)
            once, again = capped.policy_prompt(state), capped.policy_prompt(state)
            assert once == again
            shown = [action for action in actions if any(action in text for text in user(once))]
            assert len(shown) == 5
            assert (shown == list(actions[:5])) == (rule == "first")
            modelled = user(capped.world_model_prompt(state, "press 007"))
            assert sum(action in modelled[0].removesuffix("Action: press 007") for action in actions) == 5
        grown = form_of(format="react", max_listed=5, listed="sampled")
        assert grown.policy_prompt(later)[:2] == grown.policy_prompt(state)
        assert not any("press 0" in text for text in user(form_of(format=name, max_listed=0).policy_prompt(state)))
        assert sum(text.count("press ") for text in user(form_of(format=name).policy_prompt(state))) == 300


def test_a_null_text_is_the_format_s_own_and_an_empty_one_is_none(tmp_path: Path) -> None:
    for name in FORMATS:
        own, bare = form_of(format=name), form_of(format=name, system="", instruction="")
        assert own.instruction
        assert bare.system == bare.instruction == ""
        assert all(message["role"] != "system" for message in bare.policy_prompt(FIRST))
    (tmp_path / "words.txt").write_text("Do it.\n")
    told = form_of(instruction=f"file:{tmp_path / 'words.txt'}")
    assert told.instruction == "Do it."


def test_what_tells_prompts_apart_has_the_texts_and_what_was_set() -> None:
    prompt = PromptConfig(max_listed=3)
    form = prompt_format(prompt)
    assert json.loads(asked(prompt, form)) == {
        "system": form.system,
        "instruction": form.instruction,
        "max_listed": 3,
    }
    assert asked(PromptConfig(), form_of()) != asked(PromptConfig(format="react"), form_of(format="react"))


@pytest.mark.parametrize(
    "name",
    ["tex", "no.such.module:Form", "json:Form", "json:__doc__", ":P", ".a:P", "json:dumps", "json:JSONDecodeError"],
)
def test_a_format_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"early_experience\.prompt\.format="):
        form_of(format=name)
