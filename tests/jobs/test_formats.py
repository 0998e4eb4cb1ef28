"""A whole job in another prompt format, with episodes as samples: rollouts show what the environment really says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.jobs import Job, run_recipe

from verl_ee.config import PromptConfig
from verl_ee.envs import make
from verl_ee.prompts import prompt_format

pytestmark = pytest.mark.slow
EARLY = "early_experience."
LISTED = 4
USER, ASSISTANT = "\nuser\n", "\nassistant\n"


def test_whole_episodes_go_through_all_stages(tmp_path: Path) -> None:
    done = run_recipe(
        tmp_path,
        f"{EARLY}prompt.format=react",
        f"{EARLY}prompt.system=null",
        f"{EARLY}prompt.instruction=null",
        f"{EARLY}prompt.max_listed={LISTED}",
        f"{EARLY}samples=episode",
        f"{EARLY}history_length=null",
        f"{EARLY}max_turns=8",
        f"{EARLY}max_turn_tokens=24",
        # The world model is shown whole episodes too.
        "data.max_prompt_length=300",
        "data.max_response_length=700",
        "actor_rollout_ref.rollout.max_model_len=1000",
        f"trainer.validation_data_dir={tmp_path / 'validation'}",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    stages = [stage["name"] for stage in Job(tmp_path, output).json("summary.json")["stages"]]
    assert stages == ["base", "world_model", "imitation", "grpo"]
    validations, rollouts = (dumped(tmp_path / name) for name in ("validation", "rollouts"))
    assert len(validations) >= 32
    assert max(_check_episode(episode) for episode in validations) == 8
    # GRPO's are of the same loop; verl's dump does not say their tasks.
    assert len(rollouts) == 2 * 8
    assert all(ASSISTANT in episode["output"] for episode in rollouts)


def dumped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def _check_episode(episode: dict[str, Any]) -> int:
    """Play the actions of an episode again, compare what the environment says, and return the number of turns."""
    form = prompt_format(PromptConfig(format="react"))
    env = make("verl_ee/Household-v0")
    observation, info = env.reset(options={"task": episode["task"]})
    assert f"Task: {info['task']}\n" in episode["input"]
    assert episode["input"].rstrip().endswith(f"{shown(observation, info)}{ASSISTANT.rstrip()}")
    turns = 0
    parts = episode["output"].split(ASSISTANT)
    for part in parts:
        answer, _, user = part.partition(USER)
        action = form.read(answer, info["admissible_actions"]).action or answer.strip()
        observation, *_, info = env.step(action)
        turns += 1
        # Nothing follows on the last answer.
        assert user == (shown(observation, info) if turns < len(parts) else "")
    return turns


def shown(observation: str, info: dict[str, Any]) -> str:
    return "\n".join([observation, "You can:", *info["admissible_actions"][:LISTED]])
