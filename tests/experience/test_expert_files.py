"""Expert files: what is written is read back, and whatever is wrong is told with file and line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support import rooms

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExpertFileError
from verl_ee.experience.expert_files import load_experts, write_experts

ID = "verl_ee/Household-v0"
Row = dict[str, Any]


@pytest.fixture
def trajectories() -> list[ExpertTrajectory]:
    env = Household()
    return [env.expert_trajectory(f"train/{index}") for index in range(3)]


@pytest.fixture
def path(tmp_path: Path, trajectories: list[ExpertTrajectory]) -> Path:
    """A good file of three lines."""
    path = tmp_path / "experts.jsonl"
    write_experts(path, trajectories)
    return path


def refusal(path: Path, **options: Any) -> str:
    """The message with which a file is refused: one line that names the file, and nothing chained to it."""
    with pytest.raises(ExpertFileError) as raised:
        load_experts(path, **options)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    message = str(raised.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


def change(path: Path, line: int, edit: Callable[[Row], Any]) -> None:
    """Edit one line, counted from 1."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[line - 1])
    edit(row)
    lines[line - 1] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")


def test_what_is_written_is_read_back(tmp_path: Path, trajectories: list[ExpertTrajectory]) -> None:
    odd = ExpertTrajectory(
        environment="somewhere/Else-v3",
        version="1.2",
        task="t-7",
        instruction='Søk "x"\u2028and\x85then\nstop',
        steps=(ExpertStep("a\r\nb", "né", "because\n…", ("né", ""), True), ExpertStep("", "", None, None)),
        final_observation="\x0b\x1c 終",
        success=False,
        kwargs={"a": [1, {"b": None}]},
        seed=5,
    )
    path = tmp_path / "new" / "experts.jsonl"
    assert write_experts(path, [*trajectories, odd]) == 4
    read = load_experts(path)
    assert list(read.trajectories) == [*trajectories, odd]
    assert read.path == path
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_bytes().count(b"\n") == 4


def test_what_a_play_can_find_out_may_be_left_open(path: Path, trajectories: list[ExpertTrajectory]) -> None:
    def leave_open(row: Row) -> None:
        row.update(instruction=None, final_observation=None)
        row["steps"][0].update(admissible_actions=None, solved=None)

    def take_out(row: Row) -> None:
        del row["instruction"], row["final_observation"]
        del row["steps"][0]["admissible_actions"], row["steps"][0]["solved"]

    change(path, 1, leave_open)
    change(path, 2, take_out)
    first = [replace(item.steps[0], admissible_actions=None, solved=None) for item in trajectories]
    assert list(load_experts(path, ID).trajectories) == [
        replace(item, instruction=None, final_observation=None, steps=(step, *item.steps[1:]))
        for item, step in zip(trajectories[:2], first, strict=False)
    ] + [trajectories[2]]


def test_a_file_of_the_first_version_is_read(path: Path, trajectories: list[ExpertTrajectory]) -> None:
    def as_before(row: Row) -> None:
        row["schema"] = "verl_ee.expert/1"
        for step in row["steps"]:
            del step["solved"]

    change(path, 1, as_before)
    (first,) = load_experts(path, ID, limit=1).trajectories
    steps = tuple(replace(step, solved=None) for step in trajectories[0].steps)
    assert first == replace(trajectories[0], steps=steps)


def test_trajectories_that_did_not_solve_their_task_are_left_out_if_asked(
    path: Path, trajectories: list[ExpertTrajectory]
) -> None:
    for line in (1, 3):
        change(path, line, lambda row: row.update(success=False))
    everything = load_experts(path, ID)
    assert (len(everything.trajectories), everything.unsuccessful, everything.filtered_line) == (3, 0, "")
    successful = load_experts(path, ID, experts_filter="successful")
    assert successful.trajectories == (trajectories[1],)
    assert (successful.chosen, successful.unsuccessful) == (1, 2)
    assert successful.filtered_line == "experts: 2 of 3 trajectories did not solve their task and are left out"
    change(path, 2, lambda row: row.update(success=False))
    message = refusal(path, environment=ID, experts_filter="successful")
    assert "'success' is false in all 3 trajectories" in message
    assert "early_experience.experts_filter=all" in message


def test_the_limit_counts_trajectories_that_pass_the_filter(path: Path, trajectories: list[ExpertTrajectory]) -> None:
    change(path, 1, lambda row: row.update(success=False))
    limited = load_experts(path, ID, limit=1, experts_filter="successful")
    assert (limited.trajectories, limited.unsuccessful) == ((trajectories[1],), 1)


def test_reading_stops_at_the_limit(path: Path, trajectories: list[ExpertTrajectory]) -> None:
    change(path, 3, lambda row: row.update(task=3))
    assert list(load_experts(path, limit=2).trajectories) == trajectories[:2]
    assert "line 3" in refusal(path, limit=3)


def test_blank_lines_are_skipped_and_still_counted(path: Path) -> None:
    path.write_text("\n\n" + path.read_text().replace("\n", "\n  \n"))
    assert len(load_experts(path).trajectories) == 3
    change(path, 5, lambda row: row.update(task=3))
    assert f"{path}, line 5: " in refusal(path)


def test_a_failed_write_leaves_the_old_file(path: Path, trajectories: list[ExpertTrajectory]) -> None:
    def broken() -> Iterator[ExpertTrajectory]:
        yield trajectories[0]
        raise RuntimeError("no more")

    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no more"):
        write_experts(path, broken())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.jsonl")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", " \n\n\t\n"])
def test_a_file_without_a_trajectory_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    assert "holds no trajectory" in refusal(path)


def test_a_file_cut_off_anywhere_in_its_last_line_is_refused(
    tmp_path: Path, trajectories: list[ExpertTrajectory]
) -> None:
    path = tmp_path / "experts.jsonl"
    write_experts(path, [trajectories[0], replace(trajectories[1], instruction="møve")])
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    multibyte = content.index("ø".encode()) + 1
    for end in [start + 1, multibyte, len(content) - 2, *range(start + 2, len(content) - 2, 97)]:
        path.write_bytes(content[:end])
        message = refusal(path)
        assert f"{path}, line 2: " in message
        assert "cut off" in message
    path.write_bytes(content[:-1])
    assert len(load_experts(path).trajectories) == 2


def test_a_broken_line_in_the_middle_is_not_called_cut_off(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    message = refusal(path)
    assert f"{path}, line 2: not valid JSON" in message
    assert "cut off" not in message


def test_bytes_that_are_not_utf8_are_refused(path: Path) -> None:
    change(path, 2, lambda row: row.update(instruction="caf?"))
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\xe9"))
    assert f"{path}, line 2: " in refusal(path)


def rename(old: str, new: str) -> Callable[[Row], None]:
    return lambda row: row.update({new: row.pop(old)})


def with_value(**values: Any) -> Callable[[Row], None]:
    return lambda row: row.update(values)


def in_step(edit: Callable[[Row], Any]) -> Callable[[Row], Any]:
    return lambda row: edit(row["steps"][1])


def in_environment(edit: Callable[[Row], Any]) -> Callable[[Row], Any]:
    return lambda row: edit(row["environment"])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            with_value(schema="verl_ee.expert/3"),
            ["verl_ee.expert/3", "reads up to verl_ee.expert/2", "Update"],
            id="newer-schema",
        ),
        pytest.param(with_value(schema="other/1"), ["'other/1'", "verl_ee.expert/2"], id="other-schema"),
        pytest.param(lambda row: row.pop("schema"), ["'schema'", "verl_ee.expert/2"], id="no-schema"),
        pytest.param(rename("instruction", "instructoin"), ["'instructoin'", "Did you mean 'instruction'"], id="key"),
        pytest.param(
            in_step(rename("action", "actoin")), ["step 1", "'actoin'", "Did you mean 'action'"], id="key-in-step"
        ),
        pytest.param(
            in_environment(rename("version", "verison")), ["'verison'", "Did you mean 'version'"], id="key-in-env"
        ),
        pytest.param(lambda row: row.pop("task"), ["'task' must be str", "nothing"], id="no-task"),
        pytest.param(with_value(task=3), ["'task' must be str", "int 3"], id="task-int"),
        pytest.param(with_value(seed="1"), ["'seed' must be int", "str '1'"], id="seed-str"),
        pytest.param(with_value(seed=True), ["'seed' must be int", "bool True"], id="seed-bool"),
        pytest.param(with_value(success="yes"), ["'success' must be bool", "'yes'"], id="success-str"),
        pytest.param(with_value(final_observation=3), ["'final_observation' must be str", "int 3"], id="final-int"),
        pytest.param(with_value(instruction=["go"]), ["'instruction' must be str", "list"], id="instruction-list"),
        pytest.param(in_step(with_value(solved="no")), ["step 1", "'solved' must be bool", "'no'"], id="solved-str"),
        pytest.param(with_value(environment=ID), ["'environment' must be dict", ID], id="environment-str"),
        pytest.param(in_environment(with_value(id=None)), ["'id' must be str"], id="id-null"),
        pytest.param(in_environment(with_value(kwargs=[1])), ["kwargs"], id="kwargs-list"),
        pytest.param(with_value(steps="go"), ["'steps' must be list", "str 'go'"], id="steps-str"),
        pytest.param(with_value(steps=[]), ["'steps' is empty"], id="no-steps"),
        pytest.param(lambda row: row["steps"].insert(1, "go"), ["step 1", "object", "str"], id="step-str"),
        pytest.param(in_step(with_value(observation=None)), ["step 1", "'observation' must be str"], id="observation"),
        pytest.param(in_step(with_value(action=["go"])), ["step 1", "'action' must be str", "list"], id="action"),
        pytest.param(in_step(with_value(thought=1)), ["step 1", "'thought'", "string", "int"], id="thought"),
        pytest.param(in_step(with_value(admissible_actions="go")), ["step 1", "'admissible_actions'"], id="list-str"),
        pytest.param(in_step(with_value(admissible_actions=["go", 1])), ["step 1", "'admissible_actions'"], id="list"),
        pytest.param(
            in_environment(with_value(id="other/World-v1")),
            ["'other/World-v1'", f"early_experience.environment.id is '{ID}'"],
            id="other-environment",
        ),
        pytest.param(
            in_environment(with_value(version="0.9")),
            ["version 0.9", f"version {Household.version}"],
            id="other-version",
        ),
        pytest.param(
            in_environment(with_value(kwargs={"size": "large"})),
            ["large", "small", "early_experience.environment.kwargs"],
            id="other-kwargs",
        ),
        pytest.param(in_environment(with_value(kwargs={"sise": "small"})), ["sise", "size"], id="unknown-kwargs"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(path: Path, edit: Callable[[Row], Any], words: list[str]) -> None:
    change(path, 2, edit)
    message = refusal(path, environment=ID, kwargs={})
    assert f"{path}, line 2" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("line", ["3", "null", "[]", '"text"'])
def test_a_line_that_is_no_object_is_refused(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")
    assert f"{path}, line 4: expected a JSON object" in refusal(path)


def test_equal_arguments_are_accepted_however_they_are_written(
    tmp_path: Path, trajectories: list[ExpertTrajectory]
) -> None:
    spellings = [{}, {"size": "small"}, {"max_steps": None}, {"max_steps": None, "size": "small"}]
    for index, (recorded, expected) in enumerate(product(spellings, spellings)):
        path = tmp_path / f"{index}.jsonl"
        write_experts(path, [replace(trajectories[0], kwargs=recorded)])
        assert len(load_experts(path, environment=ID, kwargs=expected).trajectories) == 1
        assert "{'size': 'medium'" in refusal(path, environment=ID, kwargs={**expected, "size": "medium"})
    assert len(load_experts(path, environment=ID).trajectories) == 1


def test_the_module_in_front_of_an_id_makes_no_difference(tmp_path: Path) -> None:
    trajectory = rooms.Rooms().expert_trajectory("1")
    for recorded, used in product([rooms.BARE, rooms.ID], repeat=2):
        write_experts(tmp_path / "experts.jsonl", [replace(trajectory, environment=recorded)])
        (read,) = load_experts(tmp_path / "experts.jsonl", used).trajectories
        assert read == replace(trajectory, environment=used)


def test_an_id_without_its_module_is_refused_with_the_one_that_names_it(
    path: Path, trajectories: list[ExpertTrajectory]
) -> None:
    write_experts(path, [replace(trajectories[0], environment="own_house:own/House-v0")])
    message = refusal(path, environment="own/House-v0")
    assert "Use 'own_house:own/House-v0'." in message


def test_the_example_of_the_data_page_is_an_expert_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.split("## Expert file")[1]
    example = re.findall(r"```json\n(.*?)```", section, flags=re.DOTALL)[0]
    path = tmp_path / "experts.jsonl"
    path.write_text(json.dumps(json.loads(example)) + "\n")
    (trajectory,) = load_experts(path, ID, {"size": "small"}).trajectories
    assert trajectory.steps[0].action in (trajectory.steps[0].admissible_actions or ())
