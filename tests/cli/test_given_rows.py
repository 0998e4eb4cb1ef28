"""Rows of a job whose examples all come from a file: they are exported without experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_ee.cli.exported_rows import rows_of
from verl_ee.config import Objective, parse
from verl_ee.config.group import compose
from verl_ee.errors import ConfigError
from verl_ee.objectives.files.row_files import write_rows
from verl_ee.objectives.rows import Row


def rows_file(path: Path, *objectives: Objective) -> dict[Objective, list[Row]]:
    """Write three rows of each objective, and return them."""
    prompt = ({"role": "user", "content": "What now?"},)
    rows = {objective: [Row(prompt, f"{objective} {n}", objective) for n in range(3)] for objective in objectives}
    write_rows(path, [row for of_objective in rows.values() for row in of_objective])
    return rows


def exported(path: Path) -> dict[Objective, list[Row]]:
    """The export of a job that learns this file, and names neither experts nor environment."""
    keys: Any = OmegaConf.to_container(compose("iwm").early_experience)
    keys |= {"environment": {"id": "???"}, "experts": "???", "examples": str(path)}
    return {objective: list(rows) for objective, rows in rows_of(parse(keys), path.parent).items()}


def test_rows_of_a_file_are_exported_without_experts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = rows_file(path, "world_model", "imitation")
    assert exported(path) == rows


def test_rows_that_the_file_does_not_give_need_experts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows_file(path, "world_model")
    with pytest.raises(ConfigError, match=r"environment.id has no value .*has no rows of imitation"):
        exported(path)
