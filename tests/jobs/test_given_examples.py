"""Jobs that learn from a file of examples: nothing that it gives is collected or written again."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.export_cases import (
    ID,
    MODEL,
    encoder,  # noqa: F401
    examples,  # noqa: F401
    experts,  # noqa: F401
    keys_of,
    reflections,  # noqa: F401
    refusal,
    rows,  # noqa: F401
    states_of,
    store,  # noqa: F401
    tokenizer,  # noqa: F401
)
from support.job_checks import CPU, check
from support.prompts import TOLD_FORM
from support.recording_stages import recorded_stages
from support.stage_worlds import files_in

from verl_ee.config import Objective, StageConfig, built, check_sets, parse, sets_of
from verl_ee.errors import ConfigError, ExampleFileError
from verl_ee.experience.expert_files import ExpertFile
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import Example, encode
from verl_ee.objectives.files.row_files import write_rows
from verl_ee.objectives.rows import Row
from verl_ee.objectives.stage_data import StageData
from verl_ee.run.identity import differences, identity_of


def test_what_a_file_gives_is_not_collected() -> None:
    config = parse(keys_of("iwm_sr", examples="rows.jsonl", collect={}))
    assert built(config) == ["world_model", "reflection", "imitation"]
    assert built(config, ["reflection"]) == ["world_model", "imitation"]
    assert sets_of(config) == ["world_model", "reflection"]
    assert sets_of(config, ["reflection", "imitation"]) == ["world_model"]
    check_sets(config, ["world_model", "reflection"])
    message = refusal(ConfigError, lambda: check_sets(config, ["reflection"]))
    assert "early_experience.world_model.collect='world_model'" in message
    refusal(ConfigError, lambda: parse(keys_of("iwm_sr", collect={})))


def stage_data(experts: ExpertFile, encoder: Encoder, method: str, given: Any, store: Path, **values: Any) -> StageData:
    config = parse(keys_of(method, **values))
    stores, folder = {"world_model": store, "reflection": store}, store.parent / "run"
    return StageData(config, experts.trajectories, TOLD_FORM, files_in(folder, encoder), stores, folder, given)


def test_a_stage_learns_the_rows_of_the_file_and_builds_the_rest(
    experts: ExpertFile,
    store: Path,
    examples: dict[Objective, list[Example]],
    encoder: Encoder,
) -> None:
    talk = Row(({"role": "user", "content": "Anything?"},), "Anything.", "reflection", "mine")
    data = stage_data(experts, encoder, "iwm_sr", {"reflection": [talk]}, store)
    assert list(data.examples("world_model")) == examples["world_model"]
    (own,) = encode([talk], encoder)
    assert list(data.examples("reflection")) == [own, *examples["imitation"]]
    assert (own.objective, own.provenance) == ("reflection", "mine")
    assert own.prompt == tuple(encoder.prompt(list(talk.prompt)))


@pytest.mark.parametrize(("budget", "expected"), [("full", 40), ("one_to_one", 10), ("matched", 16)])
def test_the_budget_counts_what_the_file_gives(
    experts: ExpertFile, store: Path, encoder: Encoder, budget: str, expected: int
) -> None:
    prompt = ({"role": "user", "content": "?"},)
    rows = [Row(prompt, str(index), "world_model", str(index)) for index in range(40)]
    given = {"world_model": rows, "imitation": [replace(rows[0], objective="imitation")] * 10}
    data = stage_data(experts, encoder, "iwm", given, store, world_model={"budget": budget})
    chosen = [int(example.provenance) for example in data.examples("world_model")]
    assert len(chosen) == expected
    assert chosen == sorted(set(chosen))


@pytest.fixture
def job(tmp_path: Path, experts: ExpertFile, rows: dict[Objective, list[Row]]) -> list[str]:
    """A job that learns both objectives from a file, and could collect nothing."""
    write_rows(tmp_path / "rows.jsonl", [*rows["world_model"], *rows["imitation"]])
    return [
        "+early_experience=iwm",
        f"early_experience.environment.id={ID}",
        f"early_experience.experts={experts.path}",
        f"early_experience.examples={tmp_path}/rows.jsonl",
        "early_experience.world_model.collect=nothing",
        f"actor_rollout_ref.model.path={MODEL}",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={tmp_path}/job",
        f"hydra.run.dir={tmp_path}/hydra",
        *CPU,
    ]


def test_a_job_from_a_file_is_checked_before_it_starts(
    tmp_path: Path, job: list[str], rows: dict[Objective, list[Row]]
) -> None:
    config = check(job)
    path = tmp_path / "rows.jsonl"
    before = identity_of(OmegaConf.create({}), config)
    write_rows(path, rows["imitation"])
    assert differences(before, identity_of(OmegaConf.create({}), config))[0].startswith(
        "content of early_experience.examples"
    )
    assert "world_model.collect='nothing'" in refusal(ConfigError, lambda: check(job))
    write_rows(path, rows["reflection"])
    message = refusal(ConfigError, lambda: check(job))
    assert f"early_experience.examples='{path}' has rows of reflection, which no stage learns" in message
    path.write_text("{}\n")
    assert f"{path}, line 1" in refusal(ExampleFileError, lambda: check(job))
    path.unlink()
    assert f"{path} cannot be read" in refusal(ExampleFileError, lambda: check(job))


def test_the_stages_neither_collect_nor_reflect_what_the_file_gives(
    tmp_path: Path, experts: ExpertFile, rows: dict[Objective, list[Row]]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row for items in rows.values() for row in items])
    values = {"experts": str(experts.path), "examples": str(path), "collect": {}, "evaluate": False}
    learned: dict[str, int] = {}

    class Training:
        def run(self, name: str, stage: StageConfig, examples: Sequence[Example], *_: Any) -> None:
            learned[name] = len(examples)

    stages = recorded_stages(parse(keys_of("iwm_sr", **values)), tmp_path / "job", [], Training(), 100_000)
    stages.run()
    states = states_of(experts)
    assert learned == {"world_model": 2 * states, "reflection": 2 * states}
    assert stages.folder.finished() == ("world_model", "reflection", "hand_over")
    assert (stages.summary.sets, stages.summary.reflect, stages.summary.stages) == ({}, None, ())
