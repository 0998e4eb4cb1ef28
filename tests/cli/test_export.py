"""Examples in open formats: nothing is lost on the way out and back, and a run exports what its stages learn."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from support.export_cases import (
    ENVIRONMENT,
    HISTORY,
    ID,
    THOUGHT,
    THREE,
    Item,
    encoder,  # noqa: F401
    examples,  # noqa: F401
    experts,  # noqa: F401
    exported,
    keys_of,
    lines_of,
    reflections,  # noqa: F401
    refusal,
    rows,  # noqa: F401
    run,
    states_of,
    store,  # noqa: F401
    tokenizer,  # noqa: F401
)
from support.stage_worlds import files_in

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.cli.main import main
from verl_ee.config import CollectConfig, EarlyExperienceConfig, EnvironmentConfig, Objective, PromptConfig, parse
from verl_ee.errors import StoreError
from verl_ee.experience.collecting.completed_experts import completed_experts
from verl_ee.experience.expert_files import ExpertFile, ExpertsFilter, load_experts, write_experts
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.parquet import write_table
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import Example, encode
from verl_ee.objectives.files.row_files import export_messages, read_rows, write_rows
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA, RATIONALES_FILE, Rationale
from verl_ee.objectives.rows import Row
from verl_ee.objectives.stage_data import StageData
from verl_ee.objectives.summaries import write_summaries
from verl_ee.prompts import prompt_format
from verl_ee.run.folder import RunFolder
from verl_ee.run.identity import identity_of

FILTERS: tuple[ExpertsFilter, ...] = ("all", "successful")
Begin = Callable[..., tuple[RunFolder, EarlyExperienceConfig]]


def options(experts: ExpertFile, *others: object) -> list[str]:
    return ["export", "--env", ID, "--experts", str(experts.path), *map(str, others), f"history_length={HISTORY}"]


def test_examples_are_equal_built_at_once_and_through_files(
    tmp_path: Path,
    experts: ExpertFile,
    store: Path,
    reflections: Path,
    examples: dict[Objective, list[Example]],
    encoder: Encoder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--store", store, "--reflections", reflections, "--format", "messages", "--out", tmp_path / "out")
    run(*options(experts, *given))
    states = states_of(experts)
    assert f"{2 * states} examples in {tmp_path / 'out' / 'iwm_sft.jsonl'}" in capsys.readouterr().out
    run("import", "--format", "messages", tmp_path / "out", "--out", tmp_path / "rows.jsonl")
    assert capsys.readouterr().out.startswith(f"{states} imitation, {2 * states} world_model, {states} reflection in ")
    found = read_rows(tmp_path / "rows.jsonl")
    assert {objective: list(encode(items, encoder)) for objective, items in found.items()} == examples
    assert {len(items) for items in examples.values()} == {states, 2 * states}


def test_the_three_files_have_the_published_form(tmp_path: Path, rows: dict[Objective, list[Row]]) -> None:
    export_messages(tmp_path / "out", rows)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(THREE)
    for name, (objective, items) in zip(THREE, rows.items(), strict=True):
        lines = lines_of(tmp_path / "out" / name)
        assert [line["messages"] for line in lines] == [row.messages for row in items]
        for line in lines:
            assert set(line) == {"messages", "objective", "provenance"}
            assert [message["role"] for message in line["messages"]] == ["system", "user", "assistant"]
            assert line["objective"] == objective
    first = (tmp_path / "out" / THREE[0]).read_text(encoding="utf-8")
    assert "Søk … \u2028\x85 <|im_end|>" in first
    assert lines_of(tmp_path / "out" / THREE[0])[0]["messages"][-1]["content"].startswith(THOUGHT)


def test_only_what_is_given_is_written(tmp_path: Path, experts: ExpertFile, store: Path) -> None:
    run(*options(experts, "--format", "messages", "--out", tmp_path / "experts"))
    assert [path.name for path in (tmp_path / "experts").iterdir()] == [THREE[0]]
    run(*options(experts, "--store", store, "--format", "verl-sft", "--out", tmp_path / "both"))
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["imitation.parquet", "world_model.parquet"]


def test_verl_learns_the_same_text_from_the_parquet_files(
    tmp_path: Path,
    experts: ExpertFile,
    store: Path,
    reflections: Path,
    rows: dict[Objective, list[Row]],
    tokenizer: Any,
) -> None:
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    given = ("--store", store, "--reflections", reflections, "--format", "verl-sft", "--out", tmp_path)
    run(*options(experts, *given))
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 4096, "truncation": "error"})
    for objective, items in rows.items():
        dataset = MultiTurnSFTDataset(str(tmp_path / f"{objective}.parquet"), tokenizer, config)
        assert len(dataset) == len(items)
        assert pq.read_schema(tmp_path / f"{objective}.parquet").names == ["messages", "objective", "provenance"]
        for index in (0, 1, len(items) - 1):
            learned = dataset[index]["input_ids"][dataset[index]["loss_mask"].bool()]
            # verl learns the line end behind the end of a turn as well.
            assert tokenizer.decode(learned) == f"{items[index].target}{tokenizer.eos_token}\n"
            read = dataset[index]["input_ids"][~dataset[index]["loss_mask"].bool()]
            assert tokenizer.decode(read) == tokenizer.apply_chat_template(
                list(items[index].prompt), add_generation_prompt=True, tokenize=False
            )


def test_an_export_of_what_does_not_belong_together_is_refused(
    tmp_path: Path, experts: ExpertFile, store: Path, reflections: Path
) -> None:
    write_experts(tmp_path / "one.jsonl", experts.trajectories[:1])
    one = load_experts(tmp_path / "one.jsonl")
    message = refusal(StoreError, lambda: exported(one, store))
    assert str(store) in message
    assert "experts_sha256" in message
    other = EnvironmentConfig(id=ID, kwargs={"reward": "progress"})
    write_experts(tmp_path / "other.jsonl", [replace(item, kwargs=other.kwargs) for item in experts.trajectories])
    elsewhere = load_experts(tmp_path / "other.jsonl")
    assert "another environment" in refusal(StoreError, lambda: exported(elsewhere, store, environment=other))
    message = refusal(StoreError, lambda: exported(one, None, reflections))
    assert f"{reflections}: trajectory 1, step 0 is not in the expert file" in message


def test_rationales_are_told_of_the_states_that_they_were_written_for(tmp_path: Path, experts: ExpertFile) -> None:
    """The filter leaves out a trajectory, so indices of all and of the successful name different states."""
    first, second = experts.trajectories
    write_experts(tmp_path / "mixed.jsonl", [replace(first, success=False), second, second])
    every, successful = (load_experts(tmp_path / "mixed.jsonl", ID, None, None, name) for name in FILTERS)
    rationale = Rationale(StateRef(0, 0), "Of the first.", "me", ("a",))
    write_table(tmp_path / "texts" / RATIONALES_FILE, [rationale.to_row()], RATIONALE_SCHEMA, {})
    message = refusal(StoreError, lambda: exported(successful, None, tmp_path / "texts"))
    assert f"{tmp_path / 'texts'} has no experts.json" in message
    assert "Use early_experience.experts_filter=all" in message

    completed_experts(tmp_path / "texts", every, ENVIRONMENT, CollectConfig())
    message = refusal(StoreError, lambda: exported(successful, None, tmp_path / "texts"))
    assert f"{tmp_path / 'texts'} was made with another experts_filter (all)" in message
    assert "Use early_experience.experts_filter=all" in message
    completed_experts(tmp_path / "texts", successful, ENVIRONMENT, CollectConfig())
    (row,) = exported(successful, None, tmp_path / "texts")["reflection"]
    assert second.steps[0].observation in row.prompt[-1]["content"]

    write_experts(tmp_path / "mixed.jsonl", [second, second, first])
    other = load_experts(tmp_path / "mixed.jsonl", ID)
    message = refusal(StoreError, lambda: exported(other, None, tmp_path / "texts"))
    assert f"{tmp_path / 'texts'} was made with another experts_sha256" in message


@pytest.fixture
def begun(tmp_path: Path, experts: ExpertFile, store: Path, reflections: Path) -> Begin:
    """Begins a run of `iwm_sr` with some settings: its folder, and what it is about to learn from."""

    def begin(**world_model: Any) -> tuple[RunFolder, EarlyExperienceConfig]:
        config = parse(keys_of("iwm_sr", experts=str(experts.path), world_model=world_model))
        folder = RunFolder(tmp_path / "run at work", identity_of(OmegaConf.create({}), config))
        folder.finish("collect/world_model")
        shutil.copytree(store, folder.store("world_model"))
        shutil.copy(reflections / RATIONALES_FILE, folder.files)
        return folder, config

    return begin


TARGETS: dict[str, Item] = {
    "raw": {},
    "difference": {"target": "difference"},
    "template": {"target": "template", "template": "$verdict in $$: ${outcome} $end"},
    "no expert": {"include_expert_transition": False},
    "few refused": {"max_refused": 0.25},
    "one to one": {"budget": "one_to_one", "seed": 3},
    "matched": {"budget": "matched", "matched_share": 0.25},
    "summary": {"target": "summary", "max_refused": 0.4},
}


@pytest.mark.parametrize("settings", TARGETS.values(), ids=TARGETS)
def test_an_export_of_a_run_is_what_its_stages_learn(
    tmp_path: Path,
    experts: ExpertFile,
    begun: Begin,
    encoder: Encoder,
    settings: Item,
) -> None:
    folder, config = begun(**settings)
    stores = {"world_model": folder.store("world_model")}
    files = files_in(folder.files, encoder)
    job = StageData(config, experts.trajectories, prompt_format(config.prompt), files, stores, folder.files)
    if settings.get("target") == "summary":
        write_summaries(folder.files, job.summary_requests(), Echo(), config.writer("policy"), 0.0)
    run("export", "--run", folder.root, "--format", "messages", "--out", tmp_path / "out")
    run("import", "--format", "messages", tmp_path / "out", "--out", tmp_path / "rows.jsonl")
    found = read_rows(tmp_path / "rows.jsonl")
    assert found == {objective: list(job.rows(objective)) for objective in ("imitation", "world_model", "reflection")}
    learned = [example for stage in config.stages for example in job.examples(stage)]
    by_objective = {objective: [item for item in learned if item.objective == objective] for objective in found}
    assert {objective: list(encode(rows, encoder)) for objective, rows in found.items()} == by_objective
    # Every one of these settings shows.
    assert (found["world_model"] == exported(experts, stores["world_model"])["world_model"]) == (not settings)


class Echo:
    """Summarises by the key of the transition."""

    kind, stop = "echo", None

    def write(self, requests: Any, /) -> Iterator[tuple[Any, str]]:
        for request in requests:
            yield request, f"Of {request.transition}."


def test_an_export_of_files_takes_the_settings_of_a_job(
    tmp_path: Path, experts: ExpertFile, store: Path, begun: Begin
) -> None:
    begun_at, _ = begun(target="difference", include_expert_transition=False)
    files = ["export", "--env", ID, "--experts", experts.path, "--store", store]
    settings = ["world_model.target=difference", "early_experience.world_model.include_expert_transition=false"]
    settings.append(f"history_length={HISTORY}")
    run(*files, "--format", "messages", "--out", tmp_path / "files", *settings)
    run("export", "--run", begun_at.root, "--format", "messages", "--out", tmp_path / "run")
    assert (tmp_path / "files" / THREE[1]).read_text() == (tmp_path / "run" / THREE[1]).read_text()
    # A setting of a run can be changed as well.
    run(*files, "--format", "messages", "--out", tmp_path / "files", settings[-1])
    changed = ["world_model.target=raw", "world_model.include_expert_transition=true"]
    run("export", "--run", begun_at.root, "--format", "messages", "--out", tmp_path / "run", *changed)
    assert (tmp_path / "files" / THREE[1]).read_text() == (tmp_path / "run" / THREE[1]).read_text()


def test_an_export_of_a_run_has_the_rows_that_a_file_gave_it(
    tmp_path: Path, begun: Begin, rows: dict[Objective, list[Row]]
) -> None:
    folder, _ = begun()
    mine = replace(rows["reflection"][0], target="Mine.\nAction: look")
    write_rows(tmp_path / "rows.jsonl", [mine])
    run(
        "export",
        "--run",
        folder.root,
        "--format",
        "messages",
        "--out",
        tmp_path / "out",
        f"examples={tmp_path}/rows.jsonl",
    )
    assert [line["messages"] for line in lines_of(tmp_path / "out" / THREE[2])] == [mine.messages]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--run FOLDER", "--env ID"]),
        (["--env", ID], ["--experts FILE"]),
        (["--run", "nowhere"], ["nowhere/early_experience/state.json", "trainer.default_local_dir"]),
        (["--run", "nowhere", "--env", ID], ["--run names environment and files"]),
        (["--env", ID, "--experts", "e.jsonl", "history_length"], ["'history_length'", "KEY=VALUE"]),
        (["--env", ID, "--experts", "e.jsonl", "world_model.targt=raw"], ["Did you mean 'target'"]),
        (["--env", ID, "--experts", "e.jsonl", "demonstrations=d.parquet"], ["demonstrations=null"]),
        (["--env", ID, "--experts", "e.jsonl", "world_model.template=${"], ["'world_model.template=${'", "Quote it"]),
    ],
)
def test_an_export_that_is_not_clear_is_refused(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--format", "messages", "--out", str(tmp_path / "out"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_an_export_of_a_run_of_version_0_2_has_its_prompts(tmp_path: Path, begun: Begin) -> None:
    """Its settings, of before there were keys of prompts, do not say them."""
    folder, _ = begun()
    state = json.loads(folder.state_path.read_text())
    newer = [key for key in state["identity"] if ".prompt." in key or key.endswith(".experts_filter")]
    assert len(newer) == 1 + len(PromptConfig.model_fields)
    for key in newer:
        del state["identity"][key]
    write_json(folder.state_path, state)
    run("export", "--run", folder.root, "--format", "messages", "--out", tmp_path / "out")
    system, *_, asked, _ = lines_of(tmp_path / "out" / THREE[0])[0]["messages"]
    assert system["content"] == "You act in a text world. Answer with one action."
    assert "Action:" not in asked["content"]


def test_an_export_of_a_run_of_version_0_1_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    write_json(folder.state_path, {"schema": 2, "identity": {}, "finished": [], "trained": {}})
    arguments = ["--run", str(folder.root), "--format", "messages", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"StageError: {folder.state_path} has schema 2; this verl_ee reads 3.")


def test_a_world_model_without_a_store_is_refused(
    tmp_path: Path, experts: ExpertFile, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["stages.imitation.objectives=[imitation,world_model]", "collect.world_model.k=3"]
    arguments = [*options(experts, "--format", "messages", "--out", tmp_path / "out"), *settings]
    assert main(arguments) == 1
    assert "'world_model', and no store has them. Add --store FOLDER" in capsys.readouterr().err
