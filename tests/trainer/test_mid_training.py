"""Mid-training that is killed and goes on, on verl's real actor worker."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import actors, mid_training_runs
from support.actors import PAIRS

from verl_ee.errors import StageError
from verl_ee.objectives.files.example_files import ExampleSet
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import StageProgress
from verl_ee.trainer.mid_training import MidTraining

KILLS: tuple[dict[str, Any], ...] = (
    {"die_at": ("world_model", 3)},
    {"die_after_save": ("world_model", 4)},
    {"die_at": ("imitation", 7)},
    {"die_after_save": ("imitation", 4)},
)
"""Two points in each stage: between two checkpoints, and when one is written but not yet counted."""


def program(name: str, folder: Path, **arguments: Any) -> Any:
    return actors.run(name, 1, folder, script=mid_training_runs.__file__, **arguments)[0]


@pytest.fixture(scope="module")
def undisturbed(rows: mid_training_runs.Rows, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Both stages without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "run", program("mid_train", folder, rows=rows, into=str(folder / "run"), save_freq=2)


@pytest.fixture(scope="module")
def killed(rows: mid_training_runs.Rows, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[int]]:
    """Both stages, killed at four points: folder, result, and the step that each attempt began with."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = {"rows": rows, "into": str(folder / "run"), "save_freq": 2}
    began = []
    for kill in KILLS:
        with pytest.raises(AssertionError):
            program("mid_train", folder, **arguments, **kill)
        began.append(sum(item.step for item in RunFolder(folder / "run").trained().values()))
    return folder / "run", program("mid_train", folder, **arguments), began


def test_killed_stages_end_with_the_same_weights(undisturbed: tuple[Path, Any], killed: tuple[Path, Any, Any]) -> None:
    assert killed[1]["state"] == undisturbed[1]["state"]
    assert undisturbed[1]["state"]["parameters_with_moments"] > 0


def test_nothing_is_done_twice_beyond_the_newest_checkpoint(
    undisturbed: tuple[Path, Any], killed: tuple[Path, Any, list[int]]
) -> None:
    assert undisturbed[1]["updates"] == 12
    # Killed when step 4 was written but not counted, and when steps 3 and 7 were taken: back to 2, 2, 6 and 8.
    assert killed[2] == [2, 2, 6, 8]
    assert killed[1]["updates"] == 12 - 8


def test_metrics_have_every_step_once(undisturbed: tuple[Path, Any], killed: tuple[Path, Any, Any]) -> None:
    expected, resumed = (
        (folder / "early_experience/metrics.jsonl").read_text().splitlines() for folder in (undisturbed[0], killed[0])
    )
    assert resumed == expected
    assert [json.loads(line)["step"] for line in resumed] == list(range(1, 13))


def test_of_a_stage_its_last_checkpoint_is_kept(killed: tuple[Path, Any, Any]) -> None:
    for name in ("world_model", "imitation"):
        folder = killed[0] / "early_experience" / name
        assert [path.name for path in folder.iterdir()] == ["global_step_6"]
        names = {path.name for path in (folder / "global_step_6/actor").iterdir()}
        assert {f"{part}_world_size_1_rank_0.pt" for part in ("model", "optim", "extra_state")} <= names
        assert {"huggingface", "fsdp_config.json"} <= names


def test_a_checkpoint_of_a_stage_merges_into_a_hugging_face_model(
    killed: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    import sys

    import torch
    from transformers import AutoModelForCausalLM

    actor = killed[0] / "early_experience/imitation/global_step_6/actor"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    subprocess.run([*command, "--local_dir", str(actor), "--target_dir", str(tmp_path)], check=True, timeout=300)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    saved = torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=False)
    for name, value in saved.items():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(merged[name].to(torch.bfloat16), value.to(torch.bfloat16)), name


def test_other_examples_are_refused_and_trained_again_by_force(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.reach("imitation", StageProgress(2, 6, "others"))
    taken_back: list[int] = []
    log = SimpleNamespace(take_back=taken_back.append)
    training = MidTraining(None, folder, log, 0, PAIRS, 0)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"'imitation' was trained for 2 of 6 steps on other examples.*resume=force"):
        training.run("imitation", None, ExampleSet.of([]), 6, None, False)  # type: ignore[arg-type]
    assert folder.trained()["imitation"].step == 2
    assert training._progress("imitation", StageProgress(0, 6, ExampleSet.of([]).digest), True).step == 0
    assert taken_back == [2]
    assert folder.trained() == {}
