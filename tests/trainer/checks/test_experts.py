"""Experts of a job: what the environment has to give, and data that were made from other experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import rooms
from support.export_cases import keys_of
from support.job_checks import check, refusal
from support.stage_worlds import write_branches

from verl_ee.config import CollectConfig, EarlyExperienceConfig, EnvironmentConfig, parse
from verl_ee.envs.household.env import Household
from verl_ee.experience.collecting.collection_folder import CollectionFolder
from verl_ee.experience.collecting.completed_experts import completed_experts
from verl_ee.experience.expert_files import ExpertFile, load_experts, write_experts
from verl_ee.experience.files.parquet import write_table
from verl_ee.experience.provenance import provenance_of
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA, RATIONALES_FILE
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.checks.first_state import check_first_state

HOUSEHOLD = EnvironmentConfig(id="verl_ee/Household-v0")
FORCE = "early_experience.resume=force"


@pytest.fixture
def folder(tmp_path: Path, overrides: list[str]) -> RunFolder:
    """The folder of a run with other settings, which resumes only by force."""
    folder = RunFolder(tmp_path / "run", {"early_experience.method": "another"})
    folder.finish("collect/world_model")
    check([*overrides, FORCE])
    return folder


def other_experts(tmp_path: Path) -> None:
    """Put another expert in the place of the job's."""
    write_experts(tmp_path / "experts.jsonl", [Household().expert_trajectory("train/1")])


def test_branches_of_other_experts_are_not_gone_on_with(
    overrides: list[str], folder: RunFolder, tmp_path: Path
) -> None:
    experts = load_experts(tmp_path / "experts.jsonl", HOUSEHOLD.id)
    provenance = provenance_of(HOUSEHOLD, CollectConfig(), experts)
    write_branches(folder.store("world_model"), experts.trajectories, 1, 0, provenance)
    check([*overrides, FORCE])
    other_experts(tmp_path)
    message = refusal([*overrides, FORCE])
    assert f"{folder.store('world_model')} was made with another experts_sha256" in message
    assert "choose another trainer.default_local_dir" in message


def test_a_collection_of_other_experts_that_was_killed_is_not_gone_on_with(
    overrides: list[str], folder: RunFolder, tmp_path: Path
) -> None:
    experts = load_experts(tmp_path / "experts.jsonl", HOUSEHOLD.id)
    store = CollectionFolder(folder.store("world_model"))
    store.open_run(provenance_of(HOUSEHOLD, CollectConfig(), experts), "cache")
    check([*overrides, FORCE])
    other_experts(tmp_path)
    assert "another experts_sha256" in refusal([*overrides, FORCE])


@pytest.mark.parametrize("killed", [False, True])
def test_rationales_of_other_experts_are_not_learned(
    overrides: list[str], folder: RunFolder, tmp_path: Path, killed: bool
) -> None:
    """Also where the branches are given, and those of the other experts by now."""
    job = ["+early_experience=sr", *overrides[1:], "early_experience.reflection.writer=template", FORCE]
    experts = load_experts(tmp_path / "experts.jsonl", HOUSEHOLD.id)
    completed_experts(folder.files, experts, HOUSEHOLD, CollectConfig())
    path = folder.files / RATIONALES_FILE
    write_table(path.with_suffix(".parts") / "0.parquet" if killed else path, [], RATIONALE_SCHEMA, {})
    check(job)
    other_experts(tmp_path)
    experts = load_experts(tmp_path / "experts.jsonl", HOUSEHOLD.id)
    provenance = provenance_of(HOUSEHOLD, CollectConfig(), experts)
    write_branches(tmp_path / "given", experts.trajectories, 1, 0, provenance)
    message = refusal([*job, f"+early_experience.stores.reflection={tmp_path}/given"])
    assert f"{path} was made with another experts_sha256" in message
    check(["+early_experience=imitation", *overrides[1:], FORCE])


def test_trajectories_that_did_not_solve_their_task_are_left_out(overrides: list[str], tmp_path: Path) -> None:
    path = tmp_path / "experts.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"success": False}) + "\n")
    message = refusal(overrides)
    assert "'success' is false in all 1 trajectories" in message
    assert "early_experience.experts_filter=all" in message
    check([*overrides, "early_experience.experts_filter=all"])


def test_branches_of_another_filter_name_the_filter_to_use(
    overrides: list[str], folder: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "experts.jsonl"
    row = json.loads(path.read_text())
    path.write_text("".join(json.dumps(row | {"success": success}) + "\n" for success in (False, True)))
    experts = load_experts(path, HOUSEHOLD.id)
    provenance = provenance_of(HOUSEHOLD, CollectConfig(), experts)
    write_branches(tmp_path / "given", experts.trajectories, 1, 0, provenance)
    assert "Use early_experience.experts_filter=all" in refusal(
        [*overrides, FORCE, f"+early_experience.stores.world_model={tmp_path}/given"]
    )
    write_branches(folder.store("world_model"), experts.trajectories, 1, 0, provenance)
    message = refusal([*overrides, FORCE])
    assert "another experts_filter (all)" in message
    assert "Use early_experience.experts_filter=all" in message
    check([*overrides, FORCE, "early_experience.experts_filter=all"])


def test_an_open_instruction_needs_an_environment_that_gives_one(overrides: list[str], tmp_path: Path) -> None:
    path = tmp_path / "experts.jsonl"
    job = ["+early_experience=imitation", *overrides[1:], f"early_experience.environment.id={rooms.ID}"]
    write_experts(path, [rooms.Rooms().expert_trajectory("1")])
    row = json.loads(path.read_text())
    for gives in (["task"], []):
        row |= {"instruction": None, "environment": {"id": rooms.BARE, "version": "1", "kwargs": {"gives": gives}}}
        path.write_text(json.dumps(row) + "\n")
        options = [*job, f"+early_experience.environment.kwargs.gives={gives}"]
        if gives:
            check(options)
        else:
            assert "leaves instructions open, and support.rooms:test/Rooms-v0 gives none" in refusal(options)


class Silence(NamedTuple):
    """A job of imitation in rooms whose environment does not give all that its expert file says."""

    overrides: list[str]
    config: EarlyExperienceConfig
    experts: ExpertFile


@pytest.fixture
def silence(overrides: list[str], tmp_path: Path) -> Callable[..., Silence]:
    def of(*gives: str, **values: object) -> Silence:
        path, given = tmp_path / "experts.jsonl", {"gives": list(gives)}
        expert = rooms.Rooms().expert_trajectory("1")
        steps = (replace(expert.steps[0], **values), *expert.steps[1:])
        write_experts(path, [replace(expert, steps=steps, kwargs=given)])
        options = [
            f"early_experience.environment.id={rooms.ID}",
            f"+early_experience.environment.kwargs.gives={list(gives)}",
        ]
        keys = {"environment": {"id": rooms.ID, "kwargs": given}, "experts": str(path)}
        job = ["+early_experience=imitation", *overrides[1:], *options]
        return Silence(job, parse(keys_of("imitation", **keys)), load_experts(path, rooms.ID, given))

    return of


def test_lists_of_an_environment_that_lists_nothing_are_refused(silence: Callable[..., Silence]) -> None:
    listed = ("go on", "take lamp", "wait")
    check(silence("task", "admissible_actions", admissible_actions=listed).overrides)
    message = refusal(silence("task", admissible_actions=listed).overrides)
    assert "lists admissible actions, and support.rooms:test/Rooms-v0 lists none" in message
    assert "take them out of the expert file" in message
    check(silence("task").overrides)


def test_instructions_that_rollouts_do_not_show_are_told_with_both_remedies(
    silence: Callable[..., Silence], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train, other = tmp_path / "train.parquet", tmp_path / "val.parquet"
    job, config, experts = silence("admissible_actions")
    for path, instruction in ((train, "Find a lamp."), (other, None)):
        rows = [{"prompt": "p", "extra_info": {"task": "1", "instruction": instruction}}]
        pq.write_table(pa.Table.from_pylist(rows), path)
    check([*job, f"data.train_files={train}", f"data.val_files=[{train},{other}]"])
    told = capfd.readouterr()
    assert f"there is no extra_info.instruction in {other}. Write" in told.out + told.err
    assert check_first_state(config, experts, task_files=[train]) == ""
    for files in ([], [other], [train, other], [tmp_path / "none.parquet"]):
        warning = check_first_state(config, experts, task_files=files)
        assert "Write extra_info.instruction into the task files" in warning
        assert "info['task']" in warning
    _, config, experts = silence("task", "admissible_actions")
    assert check_first_state(config, experts, task_files=[other]) == ""


def test_an_environment_that_nothing_asks_may_fail_at_a_reset(silence: Callable[..., Silence]) -> None:
    _, config, experts = silence("task")
    lost = replace(experts, trajectories=tuple(replace(item, task="none") for item in experts.trajectories))
    warning = check_first_state(config, lost)
    assert "cannot be reset to task 'none'" in warning
