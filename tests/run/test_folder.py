"""The folder of a run: where everything lies, and who may work there."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_ee.errors import ConfigError, StageError
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER, RunState, StageProgress


def test_everything_of_a_run_lies_in_its_folder(tmp_path: Path) -> None:
    folder, own = RunFolder(tmp_path), tmp_path / "early_experience"
    assert folder.files == own
    assert folder.store("world_model") == own / "store" / "world_model"
    assert folder.checkpoint("imitation", 6) == own / "imitation" / "global_step_6" / "actor"
    assert folder.hand_over == folder.grpo_checkpoint(0) == tmp_path / "global_step_0"
    assert folder.job_log == tmp_path / "job.log"
    assert folder.ledger("large") != folder.ledger("small")
    files = [folder.state_path, folder.summary_path, folder.metrics_path, folder.error_path, folder.recording_path]
    files += [folder.cache, folder.report_plot, folder.ledger("large")]
    assert {path.parent for path in files} == {own}
    assert len({*files}) == len(files)


def test_progress_is_kept_under_the_identity_of_the_job(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"a": 1})
    assert (folder.finished(), folder.trained()) == ((), {})
    folder.finish("collect/world_model")
    folder.reach("imitation", StageProgress(2, 6, "hash"))
    folder.finish("imitation", HAND_OVER)
    assert folder.finished() == ("collect/world_model", "imitation", "hand_over")
    assert folder.trained() == {"imitation": StageProgress(2, 6, "hash")}
    # A job that goes on with other settings leaves its own behind.
    RunFolder(tmp_path, {"a": 2}).finish("later")
    state = RunState.read(folder.state_path)
    assert state is not None
    assert (state.identity, state.finished[-1], state.trained) == ({"a": 2}, "later", folder.trained())


def test_a_state_file_that_is_broken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"a": 1})
    folder.finish("collect/world_model")
    folder.state_path.write_text("{")
    for read in (folder.finished, folder.trained, lambda: folder.check_free("auto")):
        with pytest.raises(StageError, match="is not a state file"):
            read()


def test_settings_that_changed_are_named(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"a": 1, "b": 2}).finish("collect/world_model")
    with pytest.raises(ConfigError, match="a: 1 then, 3 now"):
        RunFolder(tmp_path, {"a": 3, "b": 2}).check_free("auto")
    RunFolder(tmp_path, {"a": 3, "b": 2}).check_free("auto", force=True)
    RunFolder(tmp_path, {"a": 1, "b": 2}).check_free("auto")


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"a": 1})
    folder.check_free("disable")
    folder.finish("collect/world_model")
    with pytest.raises(ConfigError, match=r"trainer\.resume_mode='disable' would overwrite it"):
        folder.check_free("disable", force=True)


def test_checkpoints_of_a_run_without_early_experience_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "global_step_3").mkdir()
    with pytest.raises(ConfigError, match=r"holds checkpoints \(global_step_3\) of a run without early experience"):
        RunFolder(tmp_path).check_free("auto")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run' cannot be written"):
        RunFolder(tmp_path / "file" / "run").check_free("auto")
