"""Files of demonstrations: refused with their row, recorded once, and counted by what a stage learns."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from support.games import expert
from support.prompts import BARE_FORM
from support.stage_worlds import files_in
from support.tool_jobs import (
    FAILURES,
    GUESSES,
    TOOL_ROWS,
    Shelf,
    config,  # noqa: F401
    row,
    write,
)
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_ee.config import needs_experts, parse
from verl_ee.config.group import compose
from verl_ee.errors import ConfigError, EarlyExperienceError, ExampleFileError
from verl_ee.objectives.examples import Example
from verl_ee.objectives.rows import Row
from verl_ee.objectives.stage_data import StageData
from verl_ee.trainer.rollout.demonstrations import check_demonstrations, recorded
from verl_ee.trainer.rollout.recording.recorder import record


def without(column: str) -> dict[str, Any]:
    return {key: value for key, value in GUESSES[0].items() if key != column}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([without("expert_responses")], ["has no column 'expert_responses'", "agent_name", "Add it"]),
        ([GUESSES[0], row("guessing", "Guess.", [])], ["row 1: expert_responses=[]", "at least one text"]),
        ([GUESSES[0], row("guessing", "Guess.", None)], ["row 1: expert_responses=None"]),
        ([row("guessing", "Guess.", ["3", ""])], ["row 0: expert_responses=['3', '']"]),
        ([row("guessing", "Guess.", "3")], ["row 0: expert_responses='3'"]),
        ([], ["no rows"]),
        ([GUESSES[0], row(None, "Guess.", ["7"])], ["row 1: agent_name=None", "Name the agent loop"]),
        (
            [row("gessing", "Guess.", ["7"])],
            ["row 0: unknown agent_name 'gessing'", "'guessing'", "agent_loop_config_path"],
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_row(
    config: DictConfig, tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    path = write(tmp_path, rows)
    if not rows:
        pq.write_table(pa.Table.from_pylist(GUESSES).slice(0, 0), path)
    with pytest.raises(ExampleFileError) as refused:
        record(path, config, 1.0)
    assert all(word in str(refused.value) for word in [str(path), *words])


def test_a_file_that_is_missing_or_of_another_kind_is_refused(config: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match=r"none\.parquet cannot be read .* Name an existing file"):
        record(tmp_path / "none.parquet", config, 0.0)
    (tmp_path / "text.parquet").write_text("{}")
    with pytest.raises(ExampleFileError, match="cannot be read as Parquet"):
        record(tmp_path / "text.parquet", config, 0.0)
    with pytest.raises(ExampleFileError, match=r"does not end in \.parquet"):
        record(write(tmp_path, GUESSES, "rows.pq"), config, 0.0)


class Half(RLHFDataset):
    """A dataset class of the user's that leaves out rows."""

    def __len__(self) -> int:
        return super().__len__() // 2


def test_a_dataset_class_that_leaves_out_rows_is_refused(config: DictConfig, tmp_path: Path) -> None:
    own = OmegaConf.merge(config, {"data": {"custom_cls": {"path": __file__, "name": "Half"}}})
    with pytest.raises(ExampleFileError, match=r"Half \(data\.custom_cls\) takes 1 of 2 rows"):
        record(write(tmp_path, GUESSES), own, 1.0)


def test_a_job_that_goes_on_learns_what_was_recorded_before(config: DictConfig, tmp_path: Path) -> None:
    path, store = write(tmp_path, [TOOL_ROWS[0], FAILURES["raises"][0]]), tmp_path / "run" / "recording.parquet"
    before = recorded(store, path, config, 0.5)
    assert len(before.examples) == len(before.failed) == 1
    looks = Shelf.looks
    assert recorded(store, path, config, 0.5) == before
    assert Shelf.looks == looks
    write(tmp_path, TOOL_ROWS)
    again = recorded(store, path, config, 0.5)
    assert len(again.examples) == 3
    assert again.examples[0] == before.examples[0]
    assert again == recorded(store, path, config, 0.5)
    with pytest.raises(ExampleFileError, match=r"nowhere\.parquet cannot be read"):
        recorded(store, tmp_path / "nowhere.parquet", config, 0.5)


def settings(method: str, **changes: Any) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(compose(method)["early_experience"], resolve=False)
    return node | changes


def test_imitation_learns_what_was_recorded_and_budgets_count_it(tmp_path: Path) -> None:
    config = parse(settings("imitation", demonstrations="d.parquet"))
    own = [Example((1,), (2,), "imitation", provenance=str(number)) for number in range(40)]
    files = files_in(tmp_path)
    data = StageData(config, [expert("game", 5)], BARE_FORM, files, {}, tmp_path, recorded=own)
    assert list(data.examples("imitation")) == own
    assert data.steps("imitation", len(own)) == 2 * 3
    rows = {"world_model": [Row(({"role": "user", "content": str(n)},), "seen", "world_model") for n in range(99)]}
    node = settings("iwm", demonstrations="d.parquet", experts="e.jsonl", environment={"id": "x/X-v0", "kwargs": {}})
    node["world_model"] = {"budget": "one_to_one"}
    both = StageData(parse(node), [expert("game", 5)], BARE_FORM, files, {}, tmp_path, rows, own)
    assert len(both.examples("world_model")) == len(own)


def test_a_job_that_imitates_demonstrations_alone_needs_no_environment() -> None:
    assert not needs_experts(parse(settings("imitation", demonstrations="d.parquet")))
    for node in (settings("imitation"), settings("iwm", demonstrations="d.parquet")):
        with pytest.raises(ConfigError, match=r"environment\.id has no value"):
            parse(node)


def test_demonstrations_that_nothing_learns_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path, GUESSES))

    def problem(method: str, given: tuple[str, ...] = (), **changes: Any) -> str:
        node = settings(method, experts="e", environment={"id": "x/X-v0", "kwargs": {}}, **changes)
        try:
            check_demonstrations(parse(node), given)  # type: ignore[arg-type]
        except EarlyExperienceError as error:
            return str(error)
        return ""

    assert problem("iwm") == problem("iwm", demonstrations=path) == ""
    assert "rows of imitation too" in problem("iwm", ("imitation",), demonstrations=path, examples="rows.jsonl")
    stages = {"world_model": settings("iwm")["stages"]["world_model"]}
    assert "no stage learns imitation" in problem("iwm", demonstrations=path, stages=stages)
    assert "cannot be read" in problem("imitation", demonstrations=f"{tmp_path}/none.parquet")
