"""A job whose examples all come from a file: it is checked and prepared without experts and without an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from support.job_checks import CPU, MODEL, check, refusal
from support.recording_stages import recorded_stages
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_ee.config import Objective
from verl_ee.errors import ConfigError
from verl_ee.objectives.row_files import write_rows
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
    assert {name: len(data.examples(name).examples) for name in early.stages} == {"world_model": 3, "imitation": 3}


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
