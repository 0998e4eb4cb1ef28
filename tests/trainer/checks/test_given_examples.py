"""A job whose examples all come from a file: it is checked and prepared without experts and without an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.job_checks import CPU, MODEL, check, refusal
from support.recording_stages import recorded_stages
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_ee.config import Objective
from verl_ee.errors import ConfigError
from verl_ee.experience.task_files import AGENT_NAME
from verl_ee.objectives.files.row_files import write_rows
from verl_ee.objectives.rows import Row
from verl_ee.trainer.rollout.agent_loop import EnvironmentAgentLoop


def job(folder: Path, *objectives: Objective) -> list[str]:
    """A job that learns three rows of each objective, and names neither experts nor environment."""
    prompt = ({"role": "user", "content": "What now?"},)
    rows = [Row(prompt, f"{objective} {number}", objective) for objective in objectives for number in range(3)]
    write_rows(folder / "rows.jsonl", rows)
    return [
        "+early_experience=iwm",
        f"early_experience.examples={folder}/rows.jsonl",
        f"actor_rollout_ref.model.path={MODEL}",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={folder}/run",
        f"hydra.run.dir={folder}/hydra",
        *CPU,
    ]


def test_it_needs_neither_experts_nor_an_environment(tmp_path: Path) -> None:
    early = check(job(tmp_path, "world_model", "imitation"))
    data = recorded_stages(early, tmp_path / "run", []).preparation.stage_data()
    assert {name: len(data.examples(name)) for name in early.stages} == {"world_model": 3, "imitation": 3}


def tasks(folder: Path, *agents: str | None) -> str:
    """Write a dataset with a row of each agent; without any, its rows name none."""
    rows: list[dict[str, Any]] = [{"prompt": [{"role": "user", "content": "What now?"}]} for _ in agents or [None]]
    named = [row | {"agent_name": agent} for row, agent in zip(rows, agents, strict=True)] if agents else rows
    path = folder / f"tasks{len(agents)}.parquet"
    pq.write_table(pa.Table.from_pylist(named), path)
    return str(path)


def test_a_dataset_of_environments_asks_for_one(tmp_path: Path) -> None:
    given = job(tmp_path, "world_model", "imitation")
    others, own = tasks(tmp_path, "tool_agent"), tasks(tmp_path, "tool_agent", AGENT_NAME)
    check([*given, f"data.train_files={others}", f"data.val_files=[{others}]"])
    message = refusal([*given, f"data.train_files=[{others},{own}]"])
    words = ["early_experience.environment.id has no value", f"data.train_files={own}", "Add early_experience"]
    assert [word for word in words if word not in message] == []
    assert f"data.val_files={own}" in refusal([*given, f"data.train_files={others}", f"data.val_files={own}"])
    check([*given, f"data.train_files={own}", "early_experience.environment.id=verl_ee/Household-v0"])


def test_a_dataset_without_agents_is_played_by_the_default_one(tmp_path: Path) -> None:
    given = [*job(tmp_path, "world_model", "imitation"), f"data.train_files={tasks(tmp_path)}"]
    check(given)
    own_default = f"actor_rollout_ref.rollout.agent.default_agent_loop={AGENT_NAME}"
    message = refusal([*given, own_default])
    words = ["data.train_files", "default_agent_loop is the agent"]
    assert [word for word in words if word not in message] == []
    check([*given, own_default, f"data.train_files={tasks(tmp_path, 'tool_agent')}"])


def test_a_dataset_that_cannot_be_read_here_is_left_to_verl(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("no table")
    for path in ("hdfs://house/tasks.parquet", tmp_path / "broken.parquet", tmp_path / "tasks.jsonl"):
        check([*job(tmp_path, "world_model", "imitation"), f"data.train_files='{path}'"])


def test_what_the_file_does_not_give_asks_for_them(tmp_path: Path) -> None:
    message = refusal(job(tmp_path, "world_model"))
    assert "early_experience.environment.id has no value" in message
    assert "early_experience.examples has no rows of imitation" in message


def test_the_agent_loop_of_environments_says_that_it_has_none(tmp_path: Path) -> None:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", job(tmp_path, "world_model", "imitation"))
    server: Any = None
    with pytest.raises(ConfigError, match=r"early_experience.environment.id has no value, but rows of the dataset"):
        EnvironmentAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=server,
            tokenizer=AutoTokenizer.from_pretrained(MODEL),
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
        )
