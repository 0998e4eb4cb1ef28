"""A real instruct model, SmolLM2-135M-Instruct, on the whole road: world model, reflection, GRPO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.jobs import ROOT

from verl_ee.objectives.reflection.rationales import read_rationales

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    subprocess.run([sys.executable, str(ROOT / "examples/smollm2/fetch.py"), str(folder)], check=True, timeout=600)
    return folder


def run(folder: Path, model: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OUT": str(folder), "MODEL": str(model)}
    command = ["bash", str(ROOT / "examples/smollm2/run.sh"), *overrides]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)


def test_a_prompt_that_does_not_say_how_to_answer_ends_collecting_with_three_responses(
    model: Path, tmp_path: Path
) -> None:
    prompt, sampling = "early_experience.prompt.", "early_experience.collect.world_model."
    done = run(
        tmp_path / "run",
        model,
        f"{prompt}system='You act in a text world. Answer with one action.'",
        f"{prompt}instruction=''",
        # The defaults, in place of what the example needs to go on.
        f"{sampling}temperatures=[1.0]",
        f"{sampling}draws=3",
    )
    assert done.returncode != 0
    assert "prompts do not say how to answer" in done.stdout + done.stderr
    error = json.loads((tmp_path / "run/early_experience/error.json").read_text())
    message = error["message"]
    assert message.startswith("The policy itself wrote ")
    assert "early_experience.collect.world_model.min_own=0.2" in message
    assert message.count("\n--- a response (") == 3
    assert error["stage"] == "collect"


def test_the_policy_itself_proposes_acts_and_writes(model: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "run", model)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    files = tmp_path / "run/early_experience"
    summary = json.loads((files / "summary.json").read_text())
    for totals in summary["sets"].values():
        assert totals["responses"] - totals["without_action"] >= 0.8 * totals["responses"]
        assert totals["own"] >= 0.2 * totals["possible"]
    rationales = read_rationales(files)
    assert len(rationales) == summary["sets"]["reflection"]["states"]
    assert any(rationale.accepted for rationale in rationales)
    assert any(row["text"] for row in pq.read_table(files / "summaries.parquet").to_pylist())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "world_model", "reflection", "grpo"]
