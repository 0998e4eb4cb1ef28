"""The predicted cost of a collection: environment steps are counted, and equal those that it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.game_collections import LISTED, PROVENANCE, STATES, TRAJECTORIES, collect
from support.games import SavedGame, SavedLaboriousGame, id_of

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import StoreError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.collecting.prediction import predict

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.parametrize("restore", ["snapshot", "replay"])
def test_a_dry_run_counts_the_steps_and_writes_nothing(tmp_path: Path, restore: str) -> None:
    config = CollectConfig.model_validate({"k": LISTED, "workers": 3, "restore": restore})
    prediction = predict(tmp_path / "store", TRAJECTORIES, EnvironmentConfig(id=id_of(SavedGame)), config)
    assert not (tmp_path / "store").exists()
    result = collect(tmp_path / "store", restore=restore, workers=3)
    assert (prediction.exact, prediction.restore, prediction.workers, prediction.states) == (True, restore, 3, STATES)
    assert prediction.cost.env_steps == result.cost.env_steps


def test_the_trial_of_the_methods_is_counted_and_predicted(tmp_path: Path) -> None:
    kwargs = {"forkable": False, "reset_rounds": 300_000, "log": str(tmp_path / "log")}
    values = {"k": LISTED, "workers": 1, "restore": "auto"}
    result = collect(tmp_path / "store", SavedLaboriousGame, kwargs=kwargs, **values)
    assert (result.restore, result.trial_usage) == ("snapshot", Usage(env_steps=3 * 6, resets=2))
    assert result.cost.env_steps == STATES * (LISTED + 1) + 3 * 6 == len((tmp_path / "log").read_text().splitlines())
    environment = EnvironmentConfig(id=id_of(SavedLaboriousGame), kwargs=kwargs)
    prediction = predict(tmp_path / "other", TRAJECTORIES, environment, CollectConfig.model_validate(values))
    assert (prediction.cost.env_steps, prediction.cost.resets) == (result.cost.env_steps, result.cost.resets)


def test_an_unfinished_collection_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "run": "1", "provenance": PROVENANCE}))
    with pytest.raises(StoreError, match="has schema 1"):
        predict(tmp_path, TRAJECTORIES, EnvironmentConfig(id=id_of(SavedGame)), CollectConfig(k=1))
