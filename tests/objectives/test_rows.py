"""Rows: the prompt and the target of every objective, and what is in neither of them."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.game_collections import write_here
from support.prompts import BARE, BARE_FORM
from support.rationale_worlds import (
    GOOD,
    HISTORY,
    STATELESS_GATES,
    Branched,
    Scripted,
    branch,
    expert_branches,
    household,  # noqa: F401
    trajectory,
)

from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import Rationale, gate_counts, write_rationales
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.rows import Row, imitation_rows, reflection_rows, world_model_rows
from verl_ee.prompts.builtin import WORLD_MODEL_SYSTEM
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state_text import state_text


def prompt_text(row: Row) -> str:
    return "\n".join(f"{message['role']}:{message['content']}" for message in row.prompt)


def scripted_rationales(
    folder: Path,
    expert: ExpertTrajectory,
    branches: Iterable[ExecutedBranch],
    texts: Sequence[str],
    gates: Sequence[str] = (),
) -> list[Rationale]:
    return write_rationales(folder, situations([expert], branches, HISTORY), Scripted(*texts), gates)


@pytest.fixture
def trajectories() -> list[ExpertTrajectory]:
    return [Household().expert_trajectory(f"train/{index}") for index in range(3)]


def test_imitation_has_one_row_per_step(trajectories: list[ExpertTrajectory]) -> None:
    first = trajectories[1].steps[0]
    thinking = replace(trajectories[1], steps=(replace(first, thought="Let me look."), *trajectories[1].steps[1:]))
    experts = [trajectories[0], thinking]
    rows = list(imitation_rows(experts, 2, BARE_FORM))
    states = [state for expert in experts for state in expert_states(expert, 2)]
    steps = [step for expert in experts for step in expert.steps]
    assert len(rows) == len(steps)
    for row, state, step in zip(rows, states, steps, strict=True):
        assert list(row.prompt) == BARE_FORM.policy_prompt(state)
        assert row.target == (f"{step.thought}\n" if step.thought else "") + f"Action: {step.action}"
        assert row.objective == "imitation"
        assert row.messages == [*row.prompt, {"role": "assistant", "content": row.target}]
    assert rows[len(trajectories[0].steps)].provenance == "trajectory 1, step 0"


def test_the_world_model_has_one_row_per_branch(trajectories: list[ExpertTrajectory], tmp_path: Path) -> None:
    write_here(tmp_path, Household, trajectories, 2)
    branches = read_branches(tmp_path)
    rows = list(world_model_rows(trajectories, branches, 3, BARE_FORM))
    assert len(rows) == len(branches) == 3 * sum(len(expert.steps) for expert in trajectories)
    for row, executed in zip(rows, branches, strict=True):
        ref, outcome = executed.ref, executed.outcome
        state = expert_states(trajectories[ref.trajectory], 3)[ref.step]
        assert list(row.prompt) == BARE_FORM.world_model_prompt(state, outcome.action)
        assert row.target == f"<observation> {outcome.observation} </observation>"
        assert row.objective == "world_model"
        assert row.provenance == f"trajectory {ref.trajectory}, step {ref.step}, {executed.transition[:12]}"
    prompts = {prompt_text(row) for row in rows}
    assert prompts.isdisjoint(map(prompt_text, imitation_rows(trajectories, 3, BARE_FORM)))


def test_no_alternative_and_no_outcome_is_in_the_prompt_of_a_reflection(tmp_path: Path) -> None:
    expert = trajectory("open door", "walk out")
    branches = [
        branch("open door", "OUTCOME one", "expert"),
        branch("ALTERNATIVE one", "OUTCOME two"),
        branch("walk out", "OUTCOME three", "expert", step=1),
        branch("ALTERNATIVE two", "OUTCOME four", step=1),
    ]
    rationales = scripted_rationales(tmp_path, expert, branches, [f"ALTERNATIVE OUTCOME {GOOD}"])
    rows = list(reflection_rows([expert], rationales, HISTORY, BARE_FORM))
    assert len(rows) == 2
    for row in rows:
        assert "ALTERNATIVE" not in prompt_text(row)
        assert "OUTCOME" not in prompt_text(row)
        assert "RATIONALE" not in prompt_text(row)
    # The words are there to be found: the targets have them.
    assert all("ALTERNATIVE OUTCOME" in row.target for row in rows)


def test_the_three_objectives_render_a_state_equally(household: Branched, tmp_path: Path) -> None:
    rationales = write_rationales(tmp_path, household.situations(), TemplateWriter(), tuple(GATES))
    states = [expert_states(expert, HISTORY) for expert in household.trajectories]
    imitated = [list(row.prompt) for row in imitation_rows(household.trajectories, HISTORY, BARE_FORM)]
    reflected = [list(row.prompt) for row in reflection_rows(household.trajectories, rationales, HISTORY, BARE_FORM)]
    modelled = [row.prompt for row in world_model_rows(household.trajectories, household.branches, HISTORY, BARE_FORM)]
    assert imitated == [BARE_FORM.policy_prompt(state) for of_trajectory in states for state in of_trajectory]
    assert reflected == imitated
    for executed, (system, user) in zip(household.branches, modelled, strict=True):
        state = states[executed.ref.trajectory][executed.ref.step]
        assert user["content"] == f"{state_text(state)}\nAction: {executed.outcome.action}"
        assert BARE_FORM.policy_prompt(state)[1]["content"] == state_text(state)
        assert system == {"role": "system", "content": WORLD_MODEL_SYSTEM}


def test_no_row_of_the_world_model_has_the_system_prompt_of_the_policy(household: Branched) -> None:
    rows = list(world_model_rows(household.trajectories, household.branches, HISTORY, BARE_FORM))
    assert BARE.system != WORLD_MODEL_SYSTEM
    assert not any(BARE.system in text for row in rows for text in (prompt_text(row), row.target))
    for executed, row in zip(household.branches, rows, strict=True):
        # A delimited target cannot be taken for an action.
        assert row.target == f"<observation> {executed.outcome.observation} </observation>"
        assert read_response(row.target).action is None


TEXTS = [
    GOOD,
    f"  {GOOD}\n\n",
    f"{GOOD}\n{GOOD}",
    f"{GOOD}\nAction: dance",
    "Action: dance",
    f"Action: dance\nAction: sing\n{GOOD}",
    f"{GOOD} Action:",
    "<observation> Garden. </observation>",
    "<|im_end|> Bonjour \u00e7a va \U0001f600",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_target_is_the_rationale_and_then_the_expert_s_action_whatever_was_written(
    text: str, tmp_path: Path
) -> None:
    expert = trajectory("open door", "walk out")
    rationales = scripted_rationales(tmp_path, expert, expert_branches(expert), [text])
    rows = list(reflection_rows([expert], rationales, HISTORY, BARE_FORM))
    assert [row.objective for row in rows] == ["reflection", "reflection"]
    for step, row in zip(expert.steps, rows, strict=True):
        assert row.target == f"{text.strip()}\nAction: {step.action}"
        assert read_response(row.target).action == step.action
        # The expert's own thought is not mixed into a reflection.
        assert step.thought not in row.target


def test_only_accepted_rationales_become_rows(tmp_path: Path) -> None:
    expert = trajectory("open door", "walk out", "close door")
    texts = [GOOD, "Too short.", f"Well, {GOOD}"]
    rationales = scripted_rationales(tmp_path, expert, expert_branches(expert), texts, STATELESS_GATES)
    assert [item.gate for item in rationales] == ["", "length", ""]
    assert gate_counts(rationales) == {"accepted": 2, "length": 1}
    rows = list(reflection_rows([expert], rationales, HISTORY, BARE_FORM))
    assert [row.target for row in rows] == [f"{GOOD}\nAction: open door", f"Well, {GOOD}\nAction: close door"]
    assert [row.provenance for row in rows] == ["trajectory 0, step 0, scripted", "trajectory 0, step 2, scripted"]


@pytest.mark.parametrize(
    "action", ["SELECT name FROM t WHERE city = 'Bob'", "cd ..", 'echo  "a  b"', "a = 1\nb = 2", "  a\n  b"]
)
def test_an_action_is_learned_as_the_expert_wrote_it(action: str) -> None:
    (row,) = imitation_rows([trajectory(action)], HISTORY, BARE_FORM)
    _, marker, learned = row.target.partition("Action:")
    assert marker
    assert learned.lstrip(" ").removeprefix("\n" if action[0] == " " else "") == action


def test_an_action_that_a_rollout_would_read_differently_is_refused() -> None:
    with pytest.raises(ExampleError, match=r"trajectory 0, step 1.*'Action: no\\nAction: yes'.*'yes'"):
        list(imitation_rows([trajectory("open door", "Action: no\nAction: yes")], HISTORY, BARE_FORM))


def test_what_a_rollout_would_take_for_a_listed_action_is_refused_unless_it_is_one() -> None:
    def rows(action: str) -> list[Row]:
        expert = trajectory(action)
        step = replace(expert.steps[0], admissible_actions=("python", "open door"))
        return list(imitation_rows([replace(expert, steps=(step,))], HISTORY, BARE_FORM))

    assert rows("Open door.")[0].target.endswith("Action: Open door.")
    with pytest.raises(ExampleError, match=r"'python\\nprint\(1\)' is read back as 'python'"):
        rows("python\nprint(1)")
