"""The state of a run: what was recorded is read back, and a state of another version is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_ee.errors import StageError
from verl_ee.experience.files.atomic import write_json
from verl_ee.run.state import RunState, StageProgress


def test_a_state_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "early_experience" / "state.json"
    assert RunState.read(path) is None
    state = RunState({"a": 1, "b.c": [None, {"d": 0.5}]}).with_finished("collect/world_model").with_finished("x", "y")
    state = state.with_progress("imitation", StageProgress(2, 6, "hash"))
    state = state.with_progress("imitation", StageProgress(4, 6, "hash"))
    state.write(path)
    assert RunState.read(path) == state
    assert json.loads(path.read_text()) == {
        "schema": 3,
        "identity": {"a": 1, "b.c": [None, {"d": 0.5}]},
        "finished": ["collect/world_model", "x", "y"],
        "trained": {"imitation": {"step": 4, "total": 6, "examples": "hash"}},
    }


def test_the_state_of_a_run_of_version_0_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    identity = {"early_experience.collect.world_model.way": "auto"}
    write_json(path, {"finished": [], "trained": {}, "schema": 2, "identity": identity})
    with pytest.raises(StageError) as caught:
        RunState.read(path)
    assert str(caught.value) == (
        f"{path} has schema 2; this verl_ee reads 3. Resume the run with the verl_ee that began it, or choose another "
        "trainer.default_local_dir."
    )


def test_a_newer_state_asks_for_an_update(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"schema": 4, "identity": {}})
    with pytest.raises(StageError, match=r"schema 4; this verl_ee reads 3\. Update verl_ee\."):
        RunState.read(tmp_path / "state.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 3}', '{"schema": 3, "identity": {}, "trained": 1}'])
def test_a_broken_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(StageError, match="is not a state file of verl_ee"):
        RunState.read(tmp_path / "state.json")
