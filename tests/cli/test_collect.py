"""`verl-ee collect` and `verl-ee inspect`: predicted, collected once, and described."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import rooms
from support.report_runs import cells

from verl_ee.cli.main import main
from verl_ee.experience.expert_files import load_experts, write_experts
from verl_ee.experience.open_parts import open_parts

ID = "verl_ee/Household-v0"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    experts = tmp_path / "experts.jsonl"
    assert main(["experts", "record", "--env", ID, "-n", "1", "--out", str(experts)]) == 0
    given = ["--env", ID, "--experts", str(experts), "--out", str(tmp_path / "store")]
    return ["collect", *given, "--k", "2", "--restore", "replay", "--workers", "1"]


@pytest.mark.usefixtures("cluster")
def test_a_collection_is_predicted_then_made_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.yaml").write_text("env_steps: 0.5\n")
    priced = [*arguments, "--prices", str(tmp_path / "prices.yaml")]
    capsys.readouterr()
    assert main([*priced, "--dry-run"]) == 0
    predicted = cells(capsys.readouterr().out, "environment steps")[1]
    assert not (tmp_path / "store" / "branches.parquet").exists()
    assert main(priced) == 0
    shown = capsys.readouterr().out
    assert cells(shown, "restore") == ["restore", "replay"]
    assert cells(shown, "environment steps")[1] == predicted
    assert float(cells(shown, "money")[1]) == 0.5 * int(predicted.replace(",", ""))
    assert shown.endswith(f"store: {tmp_path}/store\n")
    assert main(priced) == 0
    assert "has been collected already" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "store"), "--samples", "1"]) == 0
    assert capsys.readouterr().out.count("--- trajectory 0, step ") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alternatives", "policy"], ["--alternatives policy: a policy proposes in a job only", "exhaustive"]),
        (["--k", "-1"], ["--k -1", "greater than or equal to 0"]),
        (["--restore", "teleport"], ["--restore teleport", "'replay'"]),
    ],
)
def test_settings_that_cannot_be_served_are_refused(
    arguments: list[str], options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    for word in words:
        assert word in line
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("cluster")
def test_experts_are_filtered_and_completed_then_kept_with_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says neither module nor lists, and one expert of it gave up."""
    failed, *others = (rooms.Rooms().expert_trajectory(task) for task in ("3", "1", "2"))
    path, store = tmp_path / "experts.jsonl", tmp_path / "store"
    write_experts(path, [replace(failed, success=False), *others])
    command = ["collect", "--env", rooms.ID, "--out", str(store), "--k", "1", "--workers", "1"]
    assert main([*command, "--experts", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "experts: 1 of 3 trajectories did not solve their task and are left out" in shown
    assert cells(shown, "states")[1] == "5 (0 lost)"
    kept = load_experts(store / "experts.jsonl", rooms.ID).trajectories
    assert [(item.task, open_parts(item)) for item in kept] == [("1", frozenset()), ("2", frozenset())]
    assert main([*command, "--experts", str(path)]) == 0
    assert "has been collected already" in capsys.readouterr().out
    assert main([*command, "--experts", str(path), "--experts-filter", "all"]) == 1
    refused = capsys.readouterr().err
    assert "its experts_filter is successful, this one's is all" in refused
    assert "Use --experts-filter successful" in refused
    write_experts(tmp_path / "other.jsonl", others)
    assert main([*command, "--experts", str(tmp_path / "other.jsonl")]) == 1
    assert "holds another collection" in capsys.readouterr().err
    assert load_experts(store / "experts.jsonl", rooms.ID).trajectories == kept

    files = ["--env", rooms.ID, "--experts", str(path), "--store", str(store)]
    assert main(["export", *files, "--format", "messages", "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "expert_sft.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert all("You can:" in row["messages"][-2]["content"] for row in rows)
    assert "leaves open" not in capsys.readouterr().err
    alone = ["--env", rooms.ID, "--experts", str(path)]
    assert main(["export", *alone, "--format", "messages", "--out", str(tmp_path / "alone")]) == 0
    assert "leaves open admissible_actions, solved" in capsys.readouterr().err


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("gives", [("task", "admissible_actions"), ()])
def test_what_the_file_says_and_the_environment_does_not_is_told(
    gives: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert = rooms.Rooms().expert_trajectory("0")
    (step,) = expert.steps
    listed = replace(step, admissible_actions=("go on", "take lamp", "wait"), solved=False)
    write_experts(tmp_path / "experts.jsonl", [replace(expert, steps=(listed,), kwargs={"gives": list(gives)})])
    files = ["--experts", str(tmp_path / "experts.jsonl"), "--out", str(tmp_path / "store")]
    options = ["--env", rooms.ID, "--kwarg", f"gives={json.dumps(gives)}", "--k", "1", "--workers", "1"]
    assert main(["collect", *files, *options]) == 0
    told = "their file has instruction and admissible_actions, and support.rooms:test/Rooms-v0 gives none"
    assert (told in capsys.readouterr().err) == (not gives)
