"""The folder of a collection: another one and another version are refused, a finished one stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.game_collections import PROVENANCE, TRAJECTORIES, in_one_process, open_collection, tables
from support.games import SavedGame, id_of

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import StoreError
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.collecting.collection_folder import CollectionFolder


@pytest.mark.usefixtures("cluster")
def test_a_folder_with_another_collection_is_refused(tmp_path: Path) -> None:
    environment, config = EnvironmentConfig(id=id_of(SavedGame)), CollectConfig(k=1)
    few = TRAJECTORIES[:1]
    for folder, close in ((tmp_path / "open", False), (tmp_path / "closed", True)):
        assert not Collection(folder, few, environment, config, PROVENANCE).closed
        if close:
            Collection(folder, few, environment, config, PROVENANCE).run(quiet=True)
        for other in ({"experts": "ffff"}, PROVENANCE | {"collect": "{}"}, {}):
            with pytest.raises(StoreError) as raised:
                Collection(folder, few, environment, config, other)
            for word in (str(folder), "another collection", "Choose another folder", "--cache=FOLDER"):
                assert word in str(raised.value)
        assert Collection(folder, few, environment, config, PROVENANCE).closed == close


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99, "run": "1", "provenance": {"experts": "0a1b"}}'])
def test_a_folder_whose_own_file_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json (cannot be read|has schema 99).*(collect again|Update verl_ee)"):
        open_collection(tmp_path)


def test_an_unfinished_collection_of_version_0_1_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "run": "1", "provenance": PROVENANCE}))
    with pytest.raises(StoreError) as raised:
        open_collection(tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    for word in (str(tmp_path / "run.json"), "has schema 1", "the verl_ee that began it", "collect again"):
        assert word in str(raised.value)


def test_a_finished_collection_of_version_0_1_is_read_as_it_is(tmp_path: Path) -> None:
    content = in_one_process(tmp_path)
    old = json.dumps({"schema": 1, "run": "1", "provenance": PROVENANCE})
    (tmp_path / "run.json").write_text(old)
    (tmp_path / "parts" / "facts").mkdir(parents=True)
    assert open_collection(tmp_path).closed
    assert tables(tmp_path) == content
    assert (tmp_path / "run.json").read_text() == old
    assert not (tmp_path / "parts").exists()


def test_a_collection_keeps_its_id(tmp_path: Path) -> None:
    first = CollectionFolder(tmp_path / "first").open_run(PROVENANCE, "--cache")
    assert CollectionFolder(tmp_path / "first").open_run(PROVENANCE, "--cache") == first
    assert CollectionFolder(tmp_path / "second").open_run(PROVENANCE, "--cache") != first
