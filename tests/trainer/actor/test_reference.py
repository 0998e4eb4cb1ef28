"""The reference policy on verl's real actor worker: it is the handed-over policy, and stays it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from support import actors, mid_training_runs

from verl_ee.errors import ConfigError
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.actor.reference import anchor_of, joined_fingerprints


def anchored(folder: Path, **arguments: Any) -> Any:
    """Return the log-probabilities of policy and reference around the hand-over."""
    return actors.run("anchored", 1, folder, script=mid_training_runs.__file__, **arguments)[0]


def test_a_hand_over_that_is_gone(tmp_path: Path) -> None:
    config = OmegaConf.create({"trainer": {"resume_mode": "auto"}})
    (tmp_path / "global_step_0/actor").mkdir(parents=True)
    assert anchor_of(config, RunFolder(tmp_path)) == tmp_path / "global_step_0/actor"
    shutil.rmtree(tmp_path / "global_step_0")
    with pytest.raises(ConfigError) as caught:
        anchor_of(config, RunFolder(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}/global_step_0/actor is missing")
    assert "early_experience.hand_over.reference=base" in str(caught.value)


def test_equal_fingerprints_are_shown_once() -> None:
    assert joined_fingerprints(["a", "b", "a"]) == "a+b"


@pytest.mark.parametrize("overrides", [(), mid_training_runs.LORA], ids=["full", "lora"])
def test_reference_is_the_handed_over_policy(
    rows: mid_training_runs.Rows,
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    arguments = {"rows": rows, "into": str(tmp_path / "run"), "overrides": overrides}
    before = anchored(tmp_path / "first", **arguments)
    assert gap(before["policy"], before["reference"]) <= 1e-5
    assert gap(before["policy"], before["base"]) > 1e-2
    # GRPO moves the policy; the reference stays.
    assert gap(before["moved"], before["policy"]) > 1e-2
    assert before["later"] == before["reference"]
    assert before["kept"] == [True, False, True]
    assert not any("anchor" in name for name in before["names"])
    resumed = anchored(tmp_path / "second", **arguments, resume=True)
    assert resumed["reference"] == before["reference"]
    assert resumed["policy"] == before["moved"]
    # Weights, moments, learning rate and schedule are those that were saved.
    assert resumed["state"] == before["state"]


@pytest.mark.parametrize(("strategy", "workers"), [("fsdp2", 2), ("fsdp", 1), ("fsdp", 2)])
def test_other_backbones(rows: mid_training_runs.Rows, tmp_path: Path, strategy: str, workers: int) -> None:
    overrides = (f"actor_rollout_ref.actor.strategy={strategy}",)
    arguments = {"rows": rows, "into": str(tmp_path / "run"), "overrides": overrides}
    results = actors.run("backbone", workers, tmp_path / "work", script=mid_training_runs.__file__, **arguments)
    for result in results:
        assert result["resumed"] == result["undisturbed"]
        assert result["fingerprints"][0] == result["fingerprints"][1]
        assert gap(result["policy"], result["reference"]) <= 1e-5
        assert gap(result["policy"], result["base"]) > 1e-2


def gap(one: list[list[float]], other: list[list[float]]) -> float:
    return max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(one, other, strict=True))
