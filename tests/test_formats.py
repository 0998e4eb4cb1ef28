"""Examples and experts in open formats: nothing is lost on the way out and back, and what is wrong is told by line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from transformers import AutoTokenizer

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.cli import main
from verl_ee.config import CollectConfig, EnvironmentConfig, Objective, built, check_sets, parse, sets_of
from verl_ee.config.group import compose
from verl_ee.envs import version_of
from verl_ee.envs.household.env import Household
from verl_ee.errors import ConfigError, EarlyExperienceError, ExampleFileError, ExpertFileError, StoreError
from verl_ee.experience.agentgym import read_agentgym
from verl_ee.experience.collector import provenance_of
from verl_ee.experience.experts import ExpertFile, load_experts, write_experts
from verl_ee.experience.store import (
    Branch,
    Transition,
    read_outcomes,
    state_key,
    transition_key,
    write_store,
    write_table,
)
from verl_ee.objectives.curriculum import Curriculum
from verl_ee.objectives.examples import Encoder, Example, encode, imitation, reflection, world_model
from verl_ee.objectives.export import keys_of_files, override, rows_of
from verl_ee.objectives.formats import export_messages, import_messages, read_rows, write_rows
from verl_ee.objectives.messages import Row
from verl_ee.objectives.rationales import FILE, SCHEMA, read_all
from verl_ee.objectives.reflection import Reflection
from verl_ee.objectives.summaries import summarise
from verl_ee.trainer.identity import differences, identity_of
from verl_ee.trainer.mid_training import MidTraining
from verl_ee.trainer.modes import EarlyExperienceTrainer
from verl_ee.trainer.preflight import check_job
from verl_ee.trainer.run_folder import RunFolder
from verl_ee.trainer.tokens import encoder_for

ID = "verl_ee/Household-v0"
ENVIRONMENT = EnvironmentConfig(id=ID)
MODEL = ROOT / "examples/tiny_base/model"
HISTORY = 3
THREE = ("expert_sft.jsonl", "iwm_sft.jsonl", "reflection_sft.jsonl")
THOUGHT = "Søk … \u2028\x85 <|im_end|>\n\n'quoted' \"twice\""
Item = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return encoder_for(tokenizer, "qwen2", {})


@pytest.fixture
def experts(tmp_path: Path) -> ExpertFile:
    trajectories = [Household().expert_trajectory(f"train/{index}") for index in range(2)]
    first, *others = trajectories[0].steps
    trajectories[0] = replace(trajectories[0], steps=(replace(first, thought=THOUGHT), *others))
    write_experts(tmp_path / "experts.jsonl", trajectories)
    return load_experts(tmp_path / "experts.jsonl", ID)


@pytest.fixture
def store(tmp_path: Path, experts: ExpertFile) -> Path:
    """At every state the expert's own action and one that is refused."""
    facts, branches = [], []
    for index, trajectory in enumerate(experts.trajectories):
        state = state_key({"id": ID, "version": "1", "kwargs": {}}, trajectory.task, None, ())
        later = [*(step.observation for step in trajectory.steps[1:]), trajectory.final_observation]
        for step, (expert, outcome) in enumerate(zip(trajectory.steps, later, strict=True)):
            prefix = tuple(step.action for step in trajectory.steps[:step])
            for order, (action, seen) in enumerate([(expert.action, outcome), ("fly", "You cannot fly. <|im_end|> é")]):
                key = transition_key(state, action)
                facts.append(Transition(key, state, trajectory.task, prefix, action, seen, order == 0, False))
                branches.append(Branch(index, step, order, "admissible" if order else "expert", "", "", key))
            state = transition_key(state, expert.action)
    provenance = provenance_of(ENVIRONMENT, CollectConfig(), experts.sha256, len(experts.trajectories))
    write_store(tmp_path / "store", facts, branches, provenance)
    return tmp_path / "store"


@pytest.fixture
def reflections(tmp_path: Path, experts: ExpertFile) -> Path:
    """An accepted rationale for every state, and a rejected one besides."""
    places = [(index, step) for index, item in enumerate(experts.trajectories) for step in range(len(item.steps))]
    found = [Reflection(*place, f"I think of {place} … <|im_end|>", "me", ("a",)) for place in places]
    found.append(Reflection(0, 0, "too short", "me", ("a",), "length", "is short"))
    written: list[Item] = [dict(vars(item)) | {"transitions": list(item.transitions)} for item in found]
    write_table(tmp_path / "run" / FILE, written, SCHEMA, {})
    return tmp_path / "run"


@pytest.fixture
def rows(experts: ExpertFile, store: Path, reflections: Path) -> dict[Objective, list[Row]]:
    return exported(experts, store, reflections)


@pytest.fixture
def examples(experts: ExpertFile, store: Path, reflections: Path, encoder: Encoder) -> dict[Objective, list[Example]]:
    """What a job builds."""
    trajectories = experts.trajectories
    return {
        "imitation": list(imitation(trajectories, encoder, HISTORY)),
        "world_model": list(world_model(trajectories, read_outcomes(store), encoder, HISTORY)),
        "reflection": list(reflection(trajectories, read_all(reflections), encoder, HISTORY)),
    }


def exported(
    experts: ExpertFile,
    store: Path | None = None,
    reflections: Path | None = None,
    environment: EnvironmentConfig = ENVIRONMENT,
) -> dict[Objective, list[Row]]:
    keys = keys_of_files(environment, experts.path, store, reflections)
    found = rows_of(parse(override(keys, [f"history_length={HISTORY}"])), reflections or experts.path.parent)
    return {objective: list(items) for objective, items in found.items()}


def states_of(experts: ExpertFile) -> int:
    return sum(len(trajectory.steps) for trajectory in experts.trajectories)


def options(experts: ExpertFile, *others: object) -> list[str]:
    return ["export", "--env", ID, "--experts", str(experts.path), *map(str, others), f"history_length={HISTORY}"]


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def lines_of(path: Path) -> list[Item]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def turn(role: str, content: str = "text") -> Item:
    return {"role": role, "content": content}


def conversation(*roles: str) -> Item:
    return {"messages": [turn(role, f"{role} {index}") for index, role in enumerate(roles)]}


def refusal(error: type[EarlyExperienceError], call: Callable[[], object]) -> str:
    """The message of a refusal: one line, and nothing chained to it."""
    with pytest.raises(error) as raised:
        call()
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


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


@pytest.fixture
def begun(tmp_path: Path, experts: ExpertFile, store: Path, reflections: Path) -> Callable[..., tuple[Path, Any]]:
    """Begins a run of `iwm_sr` with some settings: its folder, and what it is about to learn from."""

    def begin(**world_model: Any) -> tuple[Path, Any]:
        shipped = keys_of("iwm_sr")
        keys = shipped | {"experts": str(experts.path), "world_model": shipped["world_model"] | world_model}
        config = parse(keys)
        folder = RunFolder(tmp_path / "run at work", identity_of(OmegaConf.create({}), config))
        folder.finish("collect/world_model")
        shutil.copytree(store, folder.store("world_model"))
        shutil.copy(reflections / FILE, folder.own)
        return folder.root, config

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
    begun: Callable[..., tuple[Path, Any]],
    encoder: Encoder,
    settings: Item,
) -> None:
    folder, config = begun(**settings)
    own = folder / "early_experience"
    stores = {"world_model": own / "store/world_model"}
    job = Curriculum(config, experts.trajectories, encoder, stores, own, 100_000)
    if settings.get("target") == "summary":
        summarise(own, job.changes(), Echo(), 0.0)
    run("export", "--run", folder, "--format", "messages", "--out", tmp_path / "out")
    run("import", "--format", "messages", tmp_path / "out", "--out", tmp_path / "rows.jsonl")
    found = read_rows(tmp_path / "rows.jsonl")
    assert found == {objective: list(job.rows(objective)) for objective in ("imitation", "world_model", "reflection")}
    learned = [example for stage in config.stages for example in job.examples(stage).examples]
    by_objective = {objective: [item for item in learned if item.objective == objective] for objective in found}
    assert {objective: list(encode(rows, encoder)) for objective, rows in found.items()} == by_objective
    # Every one of these settings shows.
    assert (found["world_model"] == exported(experts, stores["world_model"])["world_model"]) == (not settings)


class Echo:
    """Summarises by the key of the transition."""

    name, stop = "echo", None

    def write(self, requests: Any, /) -> list[str]:
        return [f"Of {request.transition}." for request in requests]


def test_an_export_of_files_takes_the_settings_of_a_job(
    tmp_path: Path, experts: ExpertFile, store: Path, begun: Callable[..., tuple[Path, Any]]
) -> None:
    begun_at, _ = begun(target="difference", include_expert_transition=False)
    files = ["export", "--env", ID, "--experts", experts.path, "--store", store]
    settings = ["world_model.target=difference", "early_experience.world_model.include_expert_transition=false"]
    settings.append(f"history_length={HISTORY}")
    run(*files, "--format", "messages", "--out", tmp_path / "files", *settings)
    run("export", "--run", begun_at, "--format", "messages", "--out", tmp_path / "run")
    assert (tmp_path / "files" / THREE[1]).read_text() == (tmp_path / "run" / THREE[1]).read_text()
    # A setting of a run can be changed as well.
    run(*files, "--format", "messages", "--out", tmp_path / "files", settings[-1])
    changed = ["world_model.target=raw", "world_model.include_expert_transition=true"]
    run("export", "--run", begun_at, "--format", "messages", "--out", tmp_path / "run", *changed)
    assert (tmp_path / "files" / THREE[1]).read_text() == (tmp_path / "run" / THREE[1]).read_text()


def test_an_export_of_a_run_has_the_rows_that_a_file_gave_it(
    tmp_path: Path, begun: Callable[..., tuple[Path, Any]], rows: dict[Objective, list[Row]]
) -> None:
    folder, _ = begun()
    mine = replace(rows["reflection"][0], target="Mine.\nAction: look")
    write_rows(tmp_path / "rows.jsonl", [mine])
    run("export", "--run", folder, "--format", "messages", "--out", tmp_path / "out", f"examples={tmp_path}/rows.jsonl")
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


def test_files_as_they_are_published_are_read(tmp_path: Path) -> None:
    """No key but messages, one array over many lines, names with a suffix, metadata, empty tools."""
    plain = write_lines(tmp_path / "expert_sft_text.jsonl", conversation("user", "assistant"))
    assert list(import_messages(plain)) == [
        Row(({"role": "user", "content": "user 0"},), "assistant 1", "imitation", "expert_sft_text.jsonl, line 1")
    ]
    array = tmp_path / "iwm_sft.jsonl"
    item = conversation("system", "user", "assistant") | {"metadata": {"kind": "expert"}, "tools": []}
    array.write_text("\n " + json.dumps([item, item], indent=2))
    found = list(import_messages(array))
    assert [(row.objective, row.provenance) for row in found] == [
        ("world_model", "iwm_sft.jsonl, item 1"),
        ("world_model", "iwm_sft.jsonl, item 2"),
    ]
    named = write_lines(tmp_path / "any.jsonl", conversation("user", "assistant") | {"objective": "reflection"})
    assert [row.objective for row in import_messages(named)] == ["reflection"]
    run("import", "--format", "messages", plain, array, named, "--out", tmp_path / "rows.jsonl")
    assert {objective: len(items) for objective, items in read_rows(tmp_path / "rows.jsonl").items()} == {
        "imitation": 1,
        "world_model": 2,
        "reflection": 1,
    }


def test_what_is_learned_of_a_whole_conversation_is_said(tmp_path: Path) -> None:
    path = write_lines(tmp_path / THREE[0], conversation("system", "user", "assistant", "user", "assistant"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert f"{path}, line 1: 2 messages" in message
    assert "--turns last" in message
    (last,) = import_messages(path, "last")
    assert [message["role"] for message in last.prompt] == ["system", "user", "assistant", "user"]
    assert (last.target, last.provenance) == ("assistant 4", f"{THREE[0]}, line 1")
    both = list(import_messages(path, "all"))
    assert [(len(row.prompt), row.target) for row in both] == [(2, "assistant 2"), (4, "assistant 4")]
    assert [row.provenance for row in both] == [f"{THREE[0]}, line 1, message 3", f"{THREE[0]}, line 1, message 5"]
    write_rows(tmp_path / "rows.jsonl", [last])
    assert read_rows(tmp_path / "rows.jsonl") == {"imitation": [last]}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([], ["expected a JSON object, found list"]),
        ({}, ["'messages' must be list, found nothing"]),
        ({"messages": {}}, ["'messages' must be list, found dict"]),
        ({"messages": []}, ["last message is not the assistant's"]),
        ({"messages": ["hello"]}, ["message 1: expected a JSON object, found str"]),
        (conversation("user"), ["last message is not the assistant's"]),
        (conversation("user", "assistant", "user"), ["last message is not the assistant's"]),
        (conversation("assistant"), ["message 1: the assistant answers no user"]),
        (conversation("system", "assistant"), ["message 2: the assistant answers no user"]),
        (conversation("user", "system", "assistant"), ["message 2: only the first message may be the system's"]),
        (conversation("user", "tool", "assistant"), ["message 2: unknown role 'tool'", "system, user"]),
        (conversation("user", "asistant"), ["message 2: unknown role 'asistant'", "Did you mean 'assistant'"]),
        ({"messages": [turn("user"), turn("assistant", " \n")]}, ["message 2: there is no text to learn"]),
        ({"messages": [turn("user"), {"role": "assistant"}]}, ["message 2: 'content' must be str, found nothing"]),
        ({"messages": [turn("user"), {"role": "assistant", "content": None}]}, ["'content' must be str", "None"]),
        ({"messages": [turn("user"), turn("assistant") | {"tool_calls": []}]}, ["message 2: unknown key 'tool_calls'"]),
        (conversation("user", "assistant") | {"tools": [{}]}, ["'tools' are not rendered"]),
        (conversation("user", "assistant") | {"mesages": []}, ["unknown key 'mesages'", "Did you mean 'messages'"]),
        (conversation("user", "assistant") | {"objective": "imitate"}, ["unknown objective 'imitate'", "'imitation'"]),
        (conversation("user", "assistant") | {"objective": 3}, ["unknown objective 3"]),
        (conversation("user", "assistant") | {"objective": "world_model"}, ["'world_model' in a file of 'imitation'"]),
        (conversation("user", "assistant") | {"provenance": 3}, ["'provenance' must be str"]),
        (conversation("user", "assistant") | {"metadata": "\ud800"}, ["not valid Unicode"]),
    ],
)
def test_a_line_that_cannot_be_learned_is_refused(tmp_path: Path, item: object, words: list[str]) -> None:
    path = write_lines(tmp_path / THREE[0], conversation("user", "assistant"), item, conversation("nobody"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert message.startswith(f"{path}, line 2")
    for word in words:
        assert word in message


def test_an_objective_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", conversation("user", "assistant"))
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    assert f"{path}, line 1: the objective is not known" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"messages": \n', ["line 1: not valid JSON"]),
        (b'{"messages": ', ["line 1: not valid JSON", "cut off"]),
        (b'\n{"messages": "\xe9"}\n', ["line 2: not UTF-8"]),
        (b'[{"messages": []},\n {]', ["line 2: not valid JSON"]),
        (b'["\xe9"]', ["not UTF-8"]),
        (b"[3]", ["item 1: expected a JSON object, found int"]),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / THREE[0]
    path.write_bytes(content)
    message = refusal(ExampleFileError, lambda: list(import_messages(path)))
    for word in (str(path), *words):
        assert word in message


def test_a_folder_without_the_files_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "expert_sft.jsonl" in refusal(ExampleFileError, lambda: list(import_messages(tmp_path)))
    assert "No such file" in refusal(ExampleFileError, lambda: list(import_messages(tmp_path / "none.jsonl")))


def test_a_failed_import_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    good = write_lines(tmp_path / "expert_sft_good.jsonl", conversation("user", "assistant"))
    bad = write_lines(tmp_path / "expert_sft_bad.jsonl", conversation("user", "assistant"), {})
    run("import", "--format", "messages", good, "--out", rows)
    before = rows.read_bytes()
    assert main(["import", "--format", "messages", str(bad), "--out", str(rows)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"ExampleFileError: {bad}, line 2")
    assert rows.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [bad.name, good.name, rows.name]
    empty = write_lines(tmp_path / THREE[0])
    assert main(["import", "--format", "messages", str(empty), "--out", str(rows)]) == 1
    assert rows.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["holds no row", "verl-ee import"]),
        (json.dumps(conversation("user", "assistant")), ["line 1", "'schema' is None", "verl_ee.examples/1"]),
        (json.dumps({"schema": "verl_ee.expert/1"}), ["line 1", "'schema' is 'verl_ee.expert/1'"]),
        (json.dumps({"schema": "verl_ee.examples/2"}), ["line 1", "newer than 1", "Update verl_ee"]),
        (json.dumps({"schema": "verl_ee.examples/1"} | conversation("user", "assistant")), ["objective is not known"]),
    ],
)
def test_a_file_that_is_not_one_of_rows_is_refused(tmp_path: Path, line: str, words: list[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    message = refusal(ExampleFileError, lambda: read_rows(tmp_path / "rows.jsonl"))
    for word in (str(tmp_path / "rows.jsonl"), *words):
        assert word in message
    assert read_rows(None) == {}


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
    assert (buy.task, buy.success, buy.final_observation) == ("7", True, "")
    assert [(step.thought, step.action) for step in buy.steps] == [("search it.", "search[mug]")]


def test_the_instruction_is_taken_from_the_first_observation_if_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"item_id": "a", "conversations": said} for said in (HEAT, BUY)))
    found = list(read_agentgym(path, ENVIRONMENT, r"Your task is to: (.*)\.", success=True))
    assert [(item.instruction, item.success) for item in found] == [("heat an egg", True), ("buy a mug", True)]
    assert next(read_agentgym(path, ENVIRONMENT, "heat.*")).instruction == "heat an egg."
    message = refusal(ExpertFileError, lambda: list(read_agentgym(path, ENVIRONMENT, "heat.*")))
    assert f"{path}, line 2, message 3: nothing matches --goal 'heat.*'" in message
    assert "not a regular expression" in refusal(ConfigError, lambda: list(read_agentgym(path, ENVIRONMENT, "(")))


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
        ({"item_id": "a", "conversations": with_message(6, value="Action: a\nb")}, ["message 6", "several lines"]),
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


def keys_of(method: str, **values: Any) -> Item:
    """The keys of a shipped method, some of them set."""
    keys = OmegaConf.to_container(compose(method).early_experience)
    assert isinstance(keys, dict)
    return keys | {"environment": {"id": ID}, "experts": "e.jsonl", "history_length": HISTORY} | values


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


def curriculum(
    experts: ExpertFile, encoder: Encoder, method: str, given: Any, store: Path, **values: Any
) -> Curriculum:
    config = parse(keys_of(method, **values))
    stores, folder = {"world_model": store, "reflection": store}, store.parent / "run"
    return Curriculum(config, experts.trajectories, encoder, stores, folder, 100_000, given)


def test_a_stage_learns_the_rows_of_the_file_and_builds_the_rest(
    experts: ExpertFile,
    store: Path,
    examples: dict[Objective, list[Example]],
    encoder: Encoder,
) -> None:
    talk = Row(({"role": "user", "content": "Anything?"},), "Anything.", "reflection", "mine")
    found = curriculum(experts, encoder, "iwm_sr", {"reflection": [talk]}, store)
    assert found.examples("world_model").examples == examples["world_model"]
    (own,) = encode([talk], encoder)
    assert found.examples("reflection").examples == [own, *examples["imitation"]]
    assert (own.objective, own.provenance) == ("reflection", "mine")
    assert own.prompt == tuple(encoder.prompt(list(talk.prompt)))


@pytest.mark.parametrize(("budget", "expected"), [("full", 40), ("one_to_one", 10), ("matched", 16)])
def test_the_budget_counts_what_the_file_gives(
    experts: ExpertFile, store: Path, encoder: Encoder, budget: str, expected: int
) -> None:
    prompt = ({"role": "user", "content": "?"},)
    rows = [Row(prompt, str(index), "world_model", str(index)) for index in range(40)]
    given = {"world_model": rows, "imitation": [replace(rows[0], objective="imitation")] * 10}
    settings = keys_of("iwm")["world_model"] | {"budget": budget}
    found = curriculum(experts, encoder, "iwm", given, store, world_model=settings).examples("world_model").examples
    assert len(found) == expected
    places = [int(example.provenance) for example in found]
    assert places == sorted(set(places))


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
    ]


def check(overrides: list[str]) -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return check_job(hydra.compose("ppo_trainer", overrides))


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


def test_the_trainer_neither_collects_nor_reflects_what_the_file_gives(
    tmp_path: Path,
    experts: ExpertFile,
    rows: dict[Objective, list[Row]],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row for items in rows.values() for row in items])
    trainer = object.__new__(EarlyExperienceTrainer)
    values = {"experts": str(experts.path), "examples": str(path), "collect": {}, "evaluate": False}
    trainer.early = parse(keys_of("iwm_sr", **values))
    trainer.folder, trainer.tokenizer = RunFolder(tmp_path / "job"), tokenizer
    trainer.config = OmegaConf.create({"data": {"max_prompt_length": 100_000, "max_response_length": 64}})
    trainer.checkpoint_manager = type(
        "Servers", (), dict.fromkeys(("sleep_replicas", "update_weights"), lambda *_: None)
    )()
    trainer.actor_rollout_wg = trainer.logger = trainer.summary = None
    trainer.get_llm_client = lambda: None
    monkeypatch.setattr(trainer, "_row_multiple", lambda: 1)
    learned: dict[str, int] = {}
    monkeypatch.setattr(trainer, "_model_config", lambda: type("Config", (), {"model_type": "qwen2"}))
    monkeypatch.setattr(trainer, "_check_space", lambda: None)
    monkeypatch.setattr(MidTraining, "run", lambda _, name, stage, examples, *__: learned.update({name: len(examples)}))
    monkeypatch.setattr(trainer, "_hand_over", lambda: None)
    trainer._run_stages()
    states = states_of(experts)
    assert learned == {"world_model": 2 * states, "reflection": 2 * states}
    assert trainer.folder.finished() == ["world_model", "reflection", "hand_over"]
