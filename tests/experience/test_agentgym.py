"""Trajectories in AgentGym's form become an expert file, and other forms are refused by line and message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.export_cases import (
    ENVIRONMENT,
    ID,
    Item,
    refusal,
    run,
    write_lines,
)

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.cli.main import main
from verl_ee.envs import version_of
from verl_ee.errors import ConfigError, ExpertFileError
from verl_ee.experience.agentgym import read_agentgym
from verl_ee.experience.expert_files import load_experts


def spoken(*values: str) -> list[Item]:
    """A conversation in AgentGym's form, after its instruction and acknowledgement."""
    said = [
        {"from": "human", "loss": None, "value": "You are in a house. Answer with Thought and Action."},
        {"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions."},
    ]
    sides = [{"from": "human", "loss": None}, {"from": "gpt", "loss": True}]
    return said + [sides[index % 2] | {"value": value} for index, value in enumerate(values)]


HEAT = spoken(
    "A room.\nYour task is to: heat an egg.\nAVAILABLE ACTIONS: go to fridge 1,look",
    "Thought:\nEggs are cold.\nThe last Action: none.\n\nAction:\ngo to fridge 1",
    "You see an egg 1.",
    "Action: take egg 1 from fridge 1 ",
    "You take it.",
)
BUY = spoken("Shop.\nYour task is to: buy a mug.", "Thought: search it.\nAction: \nsearch[mug]\n")


def test_agentgym_trajectories_become_an_expert_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"item_id": "alfworld_3", "conversations": HEAT}, {"id": 7, "conversations": BUY, "success": True}]
    path = tmp_path / "alfworld_train.json"
    path.write_text(json.dumps(items, indent=1))
    out = tmp_path / "experts.jsonl"
    run("import", "--format", "agentgym", path, "--env", ID, "--kwarg", "reward=progress", "--out", out)
    assert capsys.readouterr().out == f"2 trajectories in {out}\n"
    heat, buy = load_experts(out, ID, {"reward": "progress"}).trajectories
    assert (heat.environment, heat.version, heat.kwargs) == (ID, version_of(ID), {"reward": "progress"})
    assert (heat.task, heat.seed, heat.success) == ("alfworld_3", None, False)
    assert heat.instruction == buy.instruction == HEAT[0]["value"]
    assert [(step.observation, step.thought, step.action) for step in heat.steps] == [
        (HEAT[2]["value"], "Eggs are cold.\nThe last Action: none.", "go to fridge 1"),
        ("You see an egg 1.", None, "take egg 1 from fridge 1"),
    ]
    assert {step.admissible_actions for step in (*heat.steps, *buy.steps)} == {None}
    assert heat.final_observation == "You take it."
    assert (buy.task, buy.success, buy.final_observation) == ("7", True, None)
    assert [(step.thought, step.action) for step in buy.steps] == [("search it.", "search[mug]")]


def test_the_instruction_is_taken_from_the_first_observation_if_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"item_id": "a", "conversations": said} for said in (HEAT, BUY)))
    trajectories = list(read_agentgym(path, ENVIRONMENT, r"Your task is to: (.*)\.", success=True))
    assert [(item.instruction, item.success) for item in trajectories] == [("heat an egg", True), ("buy a mug", True)]
    assert next(read_agentgym(path, ENVIRONMENT, "heat.*")).instruction == "heat an egg."
    message = refusal(ExpertFileError, lambda: list(read_agentgym(path, ENVIRONMENT, "heat.*")))
    assert f"{path}, line 2, message 3: nothing matches --goal 'heat.*'" in message
    assert "not a regular expression" in refusal(ConfigError, lambda: list(read_agentgym(path, ENVIRONMENT, "(")))


def test_the_instruction_is_left_to_the_environment_if_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"item_id": "a", "conversations": HEAT})
    run("import", "--format", "agentgym", path, "--env", ID, "--instruction", "environment", "--out", tmp_path / "b")
    assert [item.instruction for item in load_experts(tmp_path / "b").trajectories] == [None]
    message = refusal(ConfigError, lambda: list(read_agentgym(path, ENVIRONMENT, "heat.*", instruction="environment")))
    assert message.startswith("--goal and --instruction environment both")


def with_message(index: int, **values: object) -> list[Item]:
    """`HEAT` with one message changed, counted from 1."""
    return [item | values if number == index else item for number, item in enumerate(HEAT, start=1)]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"conversations": BUY}, ["'item_id' must be text or a number, found None"]),
        ({"item_id": True, "conversations": BUY}, ["'item_id' must be text or a number"]),
        ({"item_id": "a"}, ["'conversations' must be list, found nothing"]),
        ({"item_id": "a", "messages": []}, ["unknown key 'messages'"]),
        ({"item_id": "a", "conversations": BUY, "success": 1}, ["'success' must be bool"]),
        ({"item_id": "a", "conversations": HEAT[:3]}, ["3 messages; expected instruction, acknowledgement"]),
        ({"item_id": "a", "conversations": [HEAT[0], *HEAT[3:]]}, ["message 2: it holds an action"]),
        ({"item_id": "a", "conversations": HEAT[1:]}, ["message 1", "'gpt', expected 'human'"]),
        ({"item_id": "a", "conversations": [*HEAT, HEAT[2]]}, ["message 8", "'human', expected 'gpt'"]),
        ({"item_id": "a", "conversations": [*HEAT[:2], 3]}, ["message 3: expected a JSON object, found int"]),
        ({"item_id": "a", "conversations": with_message(3, role="user")}, ["message 3: unknown key 'role'"]),
        ({"item_id": "a", "conversations": with_message(3, value=None)}, ["message 3: 'value' must be str"]),
        ({"item_id": "a", "conversations": with_message(4, loss=False)}, ["message 4: its loss is false"]),
        ({"item_id": "a", "conversations": with_message(4, value="go")}, ["message 4: no action after 'Action:'"]),
        ({"item_id": "a", "conversations": with_message(6, value="Action: \n")}, ["message 6: no action"]),
    ],
)
def test_other_forms_of_conversations_are_refused(tmp_path: Path, item: Item, words: list[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"item_id": "good", "conversations": HEAT}, item, {})
    message = refusal(ExpertFileError, lambda: list(read_agentgym(path, ENVIRONMENT)))
    assert message.startswith(f"{path}, line 2")
    for word in words:
        assert word in message


def test_an_agentgym_import_needs_an_environment_and_trajectories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_lines(tmp_path / "a.jsonl"), tmp_path / "experts.jsonl"
    command = ["import", "--format", "agentgym", str(path), "--out", str(out)]
    assert main(command) == 1
    assert "--env" in capsys.readouterr().err
    assert main([*command, "--env", ID]) == 1
    assert "holds no trajectory" in capsys.readouterr().err
    assert main([*command, "--env", ID, "--kwarg", "siez=3"]) == 1
    assert "siez" in capsys.readouterr().err
    assert not out.exists()
