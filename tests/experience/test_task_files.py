"""Task files: one row per task in the form of verl's data loader."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from support.prompts import BARE_FORM

from verl_ee.envs.household.env import Household
from verl_ee.experience.task_files import AGENT_NAME, write_tasks
from verl_ee.prompts.state import State


def test_a_row_has_the_first_state_of_its_task(tmp_path: Path) -> None:
    env, tasks = Household(), [("train", "train/3"), ("unseen", "unseen/1")]
    assert write_tasks(tmp_path / "tasks.parquet", env, tasks, BARE_FORM) == 2
    rows = pq.read_table(tmp_path / "tasks.parquet").to_pylist()
    for index, (row, (split, task)) in enumerate(zip(rows, tasks, strict=True)):
        observation, info = env.reset(options={"task": task})
        state = State(info["task"], (), observation, info["admissible_actions"])
        assert row == {
            "data_source": f"household/{split}",
            "agent_name": AGENT_NAME,
            "prompt": BARE_FORM.policy_prompt(state),
            "ability": "agent",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": index, "task": task, "split": split},
        }
