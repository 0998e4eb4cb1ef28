"""Summaries as targets: their sources, one request for each transition, and the branches of empty ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.rationale_worlds import Cycle
from support.stage_worlds import World, config, steps_taken, text_of

from verl_ee.config import EarlyExperienceConfig
from verl_ee.errors import ExampleError, StoreError
from verl_ee.objectives.summaries import (
    SUMMARIES_FILE,
    Summary,
    SummaryRequest,
    read_summaries,
    summary_requests,
    write_summaries,
)
from verl_ee.objectives.writing import text_writing
from verl_ee.objectives.writing.text_writing import TextWriter, cut_off

STAGES: dict[str, dict[str, Any]] = {"world_model": {}}


class Scripted:
    """A writer that answers by script, can die or stop, and remembers what it was asked.

    Args:
        empty: transitions that it has nothing to say of.
        dies_at: transitions after which it raises.
        stops_at: transitions after which it writes no more.
    """

    kind = "scripted"

    def __init__(self, empty: Sequence[str] = (), dies_at: int | None = None, stops_at: int | None = None) -> None:
        self.empty, self.dies_at, self.stops_at = empty, dies_at, stops_at
        self.requested: list[str] = []
        self.stop: ExampleError | None = None

    def write(self, requests: Sequence[SummaryRequest], /) -> Iterator[tuple[SummaryRequest, str]]:
        for request in requests:
            if len(self.requested) == self.dies_at:
                raise KeyboardInterrupt
            if len(self.requested) == self.stops_at:
                self.stop = ExampleError("That is enough.")
                return
            yield request, self._one(request)

    def _one(self, request: SummaryRequest) -> str:
        self.requested.append(request.transition)
        return "" if request.transition in self.empty else f" Of {request.transition}.\n"


def write(
    folder: Path, requests: Sequence[SummaryRequest], writer: TextWriter[SummaryRequest], max_dropped: float
) -> list[Summary]:
    return write_summaries(folder, requests, writer, given().writer("policy"), max_dropped)


def given(stages: dict[str, dict[str, Any]] = STAGES, **settings: Any) -> EarlyExperienceConfig:
    return config(stages, target="summary", **settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty states, four branches each, one of them refused."""
    return World(tmp_path, 4, 2, 1)


def test_a_summary_is_written_from_task_action_and_outcome_alone(world: World) -> None:
    for request, branch in zip(summary_requests(world.trajectories, world.branches), world.branches, strict=True):
        trajectory = world.trajectories[branch.ref.trajectory]
        system, user = request.prompt
        assert [system["role"], user["role"]] == ["system", "user"]
        for words in (trajectory.instruction, f": {branch.outcome.action}\n", branch.outcome.observation):
            assert words in user["content"]
        assert ("refused" in user["content"]) == (not branch.outcome.valid)
        untold = replace(request, outcome=replace(request.outcome, valid=None))
        assert "refused" not in untold.prompt[1]["content"]
        assert "ended" not in user["content"]
        assert "ended" in replace(request, outcome=replace(request.outcome, done=True)).prompt[1]["content"]
        # Neither the state's own observation nor anything of another state.
        assert not any(step.observation in user["content"] for step in trajectory.steps)


def test_one_transition_is_summarised_once_however_many_branches_point_to_it(world: World) -> None:
    repeated = [replace(item, ref=replace(item.ref, step=item.ref.step + 1)) for item in world.branches[:7]]
    twice = [*world.branches, *repeated]
    requests = summary_requests(world.trajectories, twice)
    assert [request.transition for request in requests] == [item.transition for item in world.branches]
    writer = Scripted()
    summaries = write(world.folder, requests, writer, 0.0)
    assert [(item.transition, item.writer) for item in summaries] == [(key, "scripted") for key in writer.requested]
    assert not any(item.is_empty for item in summaries)
    assert writer.requested == [item.transition for item in world.branches]
    assert read_summaries(world.folder) == {key: f"Of {key}." for key in writer.requested}
    assert sorted(path.name for path in world.folder.iterdir()) == ["store", SUMMARIES_FILE]


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_writing, "PART", 30)
    requests = summary_requests(world.trajectories, world.branches)
    keys = [request.transition for request in requests]
    first, second, third, fourth = Scripted(dies_at=30), Scripted(stops_at=20), Scripted(), Scripted()
    with pytest.raises(KeyboardInterrupt):
        write(world.folder, requests, first, 0.0)
    with pytest.raises(ExampleError, match="That is enough"):
        write(world.folder, requests, second, 0.0)
    # What is not whole does not look as if it were.
    with pytest.raises(StoreError, match="missing"):
        read_summaries(world.folder)
    write(world.folder, requests, third, 0.0)
    assert (first.requested, second.requested, third.requested) == (keys[:30], keys[30:50], keys[50:])
    # Nor does one that was killed between the file and the end of the stage.
    write(world.folder, requests, fourth, 0.0)
    assert fourth.requested == []
    write(world.folder / "straight", requests, Scripted(), 0.0)
    assert (world.folder / SUMMARIES_FILE).read_bytes() == (world.folder / "straight" / SUMMARIES_FILE).read_bytes()


@pytest.mark.parametrize("left_out", [0, 1, 8])
def test_a_branch_without_a_summary_is_left_out_and_counted(world: World, left_out: int) -> None:
    early = given()
    data = world.stage_data(early)
    requests = data.summary_requests()
    empty = [request.transition for request in requests[3 : 3 + left_out]]
    summaries = write(world.folder, requests, Scripted(empty), 0.1)
    assert len(summaries) == len(requests)
    assert [item.transition for item in summaries if item.is_empty] == empty
    learned = [item for item in world.branches if item.transition not in empty]
    examples = data.examples("world_model")
    assert [text_of(example.target) for example in examples] == [
        f"<observation> Of {item.transition}. </observation>" for item in learned
    ]
    # The input is that of every other target.
    raw = world.stage_data(config(STAGES)).examples("world_model")
    prompts = {example.provenance: example.prompt for example in raw}
    assert all(example.prompt == prompts[example.provenance] for example in examples)
    assert steps_taken(data, early, "world_model")[0] == len(learned)


def test_a_summary_that_was_cut_off_is_empty_whatever_was_written_of_it(world: World) -> None:
    requests = summary_requests(world.trajectories, world.branches)[:4]
    write(world.folder, requests, Cycle(["It opened.", cut_off(64, "It is")]), 0.5)
    assert list(read_summaries(world.folder).values()) == ["It opened.", ""] * 2


@pytest.mark.parametrize(("left_out", "allowed"), [(9, 0.1), (1, 0.0), (80, 1.0)])
def test_too_many_empty_summaries_stop_the_run(world: World, left_out: int, allowed: float) -> None:
    requests = summary_requests(world.trajectories, world.branches)
    writer = Scripted([request.transition for request in requests[:left_out]])
    with pytest.raises(ExampleError) as raised:
        write(world.folder, requests, writer, allowed)
    for words in (
        f"{left_out} of 80",
        f"early_experience.max_dropped={allowed:g}",
        "Raise early_experience.writers.policy.max_tokens",
        str(world.folder / SUMMARIES_FILE),
    ):
        assert words in str(raised.value)
    # They are on disk to be looked at.
    assert sum(not text for text in read_summaries(world.folder).values()) == left_out


@pytest.mark.parametrize("settings", [{}, {"include_expert_transition": False}, {"max_refused": 0.1}])
@pytest.mark.parametrize("budget", ["full", "one_to_one", "matched"])
def test_only_what_is_learned_is_summarised(world: World, budget: str, settings: dict[str, Any]) -> None:
    stages: dict[str, dict[str, Any]] = {"world_model": {"batch_size": 2}, "imitation": {"batch_size": 1}}
    raw = world.stage_data(config(stages, budget=budget, **settings)).examples("world_model")
    early = given(stages, budget=budget, **settings)
    data = world.stage_data(early)
    requests = data.summary_requests()
    assert [request.transition[:12] for request in requests] == [
        example.provenance.rsplit(", ", 1)[1] for example in raw
    ]
    write(world.folder, requests, Scripted([requests[0].transition, requests[5].transition]), 0.5)
    examples, modelled = steps_taken(data, early, "world_model")
    assert examples == len(requests) - 2
    if budget == "matched":
        # What was left out goes to imitation: both stages together take the steps of imitation alone.
        assert modelled == math.ceil(examples / 2)
        assert modelled + steps_taken(data, early, "imitation")[1] == world.states


def test_where_nothing_is_summarised_nothing_is_asked_for(world: World) -> None:
    assert world.stage_data(config(STAGES)).summary_requests() == []
    assert world.stage_data(given({"imitation": {}})).summary_requests() == []


def test_summaries_of_other_branches_are_refused(world: World) -> None:
    early = given()
    with pytest.raises(StoreError, match=f"{SUMMARIES_FILE} is missing"):
        world.stage_data(early).examples("world_model")
    write(world.folder, world.stage_data(early).summary_requests()[1:], Scripted(), 0.0)
    with pytest.raises(StoreError, match=r"trajectory 0, step 0.*other branches"):
        world.stage_data(early).examples("world_model")
