"""Targets of the world model: the next state as it is, its differences, or a template of the user's."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.stage_worlds import World, config, executed, text_of

from verl_ee.config import WorldModelConfig
from verl_ee.envs.household.env import Household
from verl_ee.errors import ConfigError
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.objectives.targets import NO_CHANGE, difference_target, raw_target, target_builder, template_target
from verl_ee.prompts.state import State, Turn

STATE = State("find a mug", (Turn("A hall.", "go north"),), "A desk.\nA lamp.\nIt is dark.", ("look",))


@pytest.mark.parametrize("observation", ["It is bright.", "", "two\nlines\n", "$action ${end} $$", "<observation>"])
def test_a_raw_target_is_the_observation_as_it_came(observation: str) -> None:
    assert raw_target(STATE, executed(observation)) == observation
    assert target_builder(WorldModelConfig())(STATE, executed(observation)) == observation


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        ("A desk.\nA lamp.\nIt is dark.", NO_CHANGE),
        ("A desk.\nA lamp.\nIt is bright.", ["+ It is bright.", "- It is dark."]),
        ("A desk.\nA lamp.\nIt is dark.\nA mug.", ["+ A mug."]),
        ("A lamp.\nIt is dark.", ["- A desk."]),
        ("", ["- A desk.", "- A lamp.", "- It is dark."]),
        ("A lamp.\nA desk.\nIt is dark.", None),
        (
            "A desk.\nA lamp on.\nIt is bright now.",
            ["+ A lamp on.", "+ It is bright now.", "- A lamp.", "- It is dark."],
        ),
    ],
)
def test_a_difference_has_the_lines_that_are_new_and_those_that_are_gone(
    observation: str, expected: str | list[str] | None
) -> None:
    target = target_builder(WorldModelConfig(target="difference"))(STATE, executed(observation))
    assert target == difference_target(STATE, executed(observation))
    if expected is None:
        # A line that has moved is gone from one place and new in another.
        assert Counter(line[:2] for line in target.splitlines()) == {"+ ": 1, "- ": 1}
    elif isinstance(expected, str):
        assert target == expected
    else:
        assert sorted(target.splitlines()) == expected
    # With the old observation it gives the new one back, as far as lines go.
    before, after = Counter(STATE.observation.splitlines()), Counter(observation.splitlines())
    if target != NO_CHANGE:
        new = Counter(line[2:] for line in target.splitlines() if line.startswith("+ "))
        gone = Counter(line[2:] for line in target.splitlines() if line.startswith("- "))
        before = before + new - gone
    assert before == after


def lines_after(before: str, difference: str) -> Counter[str]:
    """The lines that an observation has after a difference."""
    lines = Counter(before.splitlines())
    if difference != NO_CHANGE:
        lines.update(line[2:] for line in difference.splitlines() if line.startswith("+ "))
        lines.subtract(line[2:] for line in difference.splitlines() if line.startswith("- "))
    return +lines


def difference_of(before: str, after: str) -> str:
    return difference_target(State("", (), before), executed(after))


def test_observations_of_one_line_differ_as_a_plain_comparison_of_texts_says() -> None:
    rng, changed = random.Random(0), 0
    for number in range(12):
        env = Household("large" if number % 2 else "small")
        before, info = env.reset(options={"task": f"train/{number}"})
        for _ in range(20):
            after, _, terminated, truncated, info = env.step(rng.choice(info["admissible_actions"]))
            told = [line for line in difflib.ndiff([before], [after]) if line[0] in "+-"]
            assert difference_of(before, after) == ("\n".join(told) or NO_CHANGE)
            changed += before != after
            if terminated or truncated:
                break
            before = after
    assert changed > 100


def test_two_long_observations_are_compared_once_and_not_line_with_line(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    set_seq1 = difflib.SequenceMatcher.set_seq1

    def counting(self: difflib.SequenceMatcher[str], text: str) -> None:
        nonlocal compared
        compared += 1
        assert compared <= 1
        set_seq1(self, text)

    monkeypatch.setattr(difflib.SequenceMatcher, "set_seq1", counting)
    before = "\n".join(f"line {number} of the page" for number in range(5000))
    after = "\n".join(f"row {number} in the page" for number in range(5000))
    assert lines_after(before, difference_of(before, after)) == Counter(after.splitlines())


@pytest.mark.parametrize("shown", [3, 900], ids=["few equal lines", "many equal lines"])
def test_a_difference_of_pages_with_lines_that_repeat_gives_the_new_page(shown: int) -> None:
    page = [line for number in range(shown) for line in (f"item {number}", "")]
    for place in (0, 1, len(page) // 2, len(page) - 2):
        after = [*page[:place], "sold out", *page[place + 1 :]]
        difference = difference_of("\n".join(page), "\n".join(after))
        assert difference == f"- {page[place]}\n+ sold out"


@pytest.mark.parametrize(
    ("text", "branch", "expected"),
    [
        ("After $action: $outcome", executed("Light."), "After switch on lamp: Light."),
        ("$verdict. $outcome $end", executed("Light.", True, True), "done. Light. The episode ends."),
        ("$verdict. $outcome $end", executed("No.", False), "refused. No."),
        ("$outcome $verdict", executed("Light.", None), "Light."),
        ("For ${task}, from '$observation'", executed(""), "For find a mug, from 'A desk.\nA lamp.\nIt is dark.'"),
        ("It costs $$5, $outcome", executed("$task"), "It costs $5, $task"),
        ("Nothing.", executed("Light."), "Nothing."),
    ],
)
def test_a_template_is_filled_from_state_and_outcome(text: str, branch: ExecutedBranch, expected: str) -> None:
    settings = WorldModelConfig(target="template", template=text)
    assert target_builder(settings)(STATE, branch) == template_target(text)(STATE, branch) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("$outcom", ["'$outcom'", "Did you mean 'outcome'?"]),
        ("$action leads to ${Outcome}", ["Did you mean 'outcome'?"]),
        ("$verdikt", ["Did you mean 'verdict'?"]),
        ("$xyz", ["Allowed: action, end, observation, outcome, task, verdict."]),
        ("It costs $5", ["unknown field", "A plain dollar is $$.", "$outcome"]),
        ("$outcome and a last $", ["A plain dollar is $$."]),
    ],
)
def test_a_template_with_a_field_that_does_not_exist_is_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        target_builder(WorldModelConfig(target="template", template=text))
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "after {key}"),
        ({"target": "difference"}, "+ after {key}\n- {before}"),
        ({"target": "template", "template": "$verdict: $outcome"}, "done: after {key}"),
    ],
)
def test_the_stage_of_the_world_model_has_the_target_that_was_asked_for(
    settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    world = World(tmp_path, 2, 2)
    examples = world.stage_data(config({"world_model": {}}, **settings)).examples("world_model")
    assert len(examples) == len(world.branches)
    for example, branch in zip(examples, world.branches, strict=True):
        before = world.trajectories[branch.ref.trajectory].steps[branch.ref.step].observation
        lines = expected.format(key=branch.transition, before=before).splitlines()
        told = text_of(example.target).removeprefix("<observation> ").removesuffix(" </observation>")
        assert sorted(told.splitlines()) == sorted(lines)
