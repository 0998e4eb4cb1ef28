"""Summaries as targets: what they are written from, that none is asked for twice, and what becomes of empty ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.stage_worlds import ENCODER, World, config, letters, steps_taken, text_of

from verl_ee.config import EarlyExperienceConfig, ReflectionConfig
from verl_ee.errors import ExampleError, StoreError
from verl_ee.objectives import text_writing as module
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations, writer_prompt
from verl_ee.objectives.summaries import (
    SUMMARIES_FILE,
    SummaryRequest,
    read_summaries,
    summary_requests,
    write_summaries,
)
from verl_ee.prompts.text import Message
from verl_ee.trainer.rollout.writer import PolicyWriter

STAGES: dict[str, dict[str, Any]] = {"world_model": {}}


class Scripted:
    """A writer that answers by script, can die or stop, and remembers what it was asked.

    Args:
        empty: transitions that it has nothing to say of.
        dies_at: calls after which it raises.
        stops_at: transitions after which it writes no more.
    """

    name = "scripted"

    def __init__(self, empty: Sequence[str] = (), dies_at: int | None = None, stops_at: int | None = None) -> None:
        self.empty, self.dies_at, self.stops_at = empty, dies_at, stops_at
        self.asked: list[str] = []
        self.calls = 0
        self.stop: ExampleError | None = None

    def write(self, requests: Sequence[SummaryRequest], /) -> list[str | None]:
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [self._one(request) for request in requests]

    def _one(self, request: SummaryRequest) -> str | None:
        if len(self.asked) == self.stops_at:
            self.stop = ExampleError("That is enough.")
            return None
        self.asked.append(request.transition)
        return "" if request.transition in self.empty else f" Of {request.transition}.\n"


def given(stages: dict[str, dict[str, Any]] = STAGES, **settings: Any) -> EarlyExperienceConfig:
    return config(stages, target="summary", **settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty states, four branches each, one of them refused."""
    return World(tmp_path, 4, 2, 1)


def test_a_summary_is_written_from_task_action_and_outcome_alone(world: World) -> None:
    for change, branch in zip(summary_requests(world.trajectories, world.outcomes), world.outcomes, strict=True):
        trajectory = world.trajectories[branch.ref.trajectory]
        system, user = change.prompt
        assert [system["role"], user["role"]] == ["system", "user"]
        for words in (trajectory.instruction, f": {branch.outcome.action}\n", branch.outcome.observation):
            assert words in user["content"]
        assert ("refused" in user["content"]) == (not branch.outcome.valid)
        assert "ended" not in user["content"]
        assert "ended" in replace(change, outcome=replace(change.outcome, done=True)).prompt[1]["content"]
        # Neither the state's own observation nor anything of another state.
        assert not any(step.observation in user["content"] for step in trajectory.steps)


def test_one_transition_is_summarised_once_however_many_branches_point_to_it(world: World) -> None:
    repeated = [replace(item, ref=replace(item.ref, step=item.ref.step + 1)) for item in world.outcomes[:7]]
    twice = [*world.outcomes, *repeated]
    found = summary_requests(world.trajectories, twice)
    assert [change.transition for change in found] == [item.transition for item in world.outcomes]
    writer = Scripted()
    assert write_summaries(world.folder, found, writer, 0.0) == {"written": len(found), "empty": 0}
    assert writer.asked == [item.transition for item in world.outcomes]
    assert read_summaries(world.folder) == {key: f"Of {key}." for key in writer.asked}
    assert sorted(path.name for path in world.folder.iterdir()) == ["store", SUMMARIES_FILE]


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 30)
    found = summary_requests(world.trajectories, world.outcomes)
    keys = [change.transition for change in found]
    first, second, third, fourth = Scripted(dies_at=1), Scripted(stops_at=20), Scripted(), Scripted()
    with pytest.raises(KeyboardInterrupt):
        write_summaries(world.folder, found, first, 0.0)
    with pytest.raises(ExampleError, match="That is enough"):
        write_summaries(world.folder, found, second, 0.0)
    # What is not whole does not look as if it were.
    with pytest.raises(StoreError, match="missing"):
        read_summaries(world.folder)
    write_summaries(world.folder, found, third, 0.0)
    assert (first.asked, second.asked, third.asked) == (keys[:30], keys[30:50], keys[50:])
    # Nor does one that was killed between the file and the end of the stage.
    write_summaries(world.folder, found, fourth, 0.0)
    assert fourth.asked == []
    write_summaries(world.folder / "straight", found, Scripted(), 0.0)
    assert (world.folder / SUMMARIES_FILE).read_bytes() == (world.folder / "straight" / SUMMARIES_FILE).read_bytes()


@pytest.mark.parametrize("left_out", [0, 1, 8])
def test_a_branch_without_a_summary_is_left_out_and_counted(world: World, left_out: int) -> None:
    early = given()
    curriculum = world.curriculum(early)
    found = curriculum.changes()
    empty = [change.transition for change in found[3 : 3 + left_out]]
    counted = write_summaries(world.folder, found, Scripted(empty), 0.1)
    assert counted == {"written": len(found) - left_out, "empty": left_out}
    learned = [item for item in world.outcomes if item.transition not in empty]
    examples = curriculum.examples("world_model").examples
    assert [text_of(example.target) for example in examples] == [
        f"<observation> Of {item.transition}. </observation>" for item in learned
    ]
    # The input is that of every other target.
    raw = world.curriculum(config(STAGES)).examples("world_model").examples
    prompts = {example.provenance: example.prompt for example in raw}
    assert all(example.prompt == prompts[example.provenance] for example in examples)
    assert steps_taken(curriculum, early, "world_model")[0] == len(learned)


@pytest.mark.parametrize(("left_out", "allowed"), [(9, 0.1), (1, 0.0), (80, 1.0)])
def test_too_many_empty_summaries_stop_the_run(world: World, left_out: int, allowed: float) -> None:
    found = summary_requests(world.trajectories, world.outcomes)
    writer = Scripted([change.transition for change in found[:left_out]])
    with pytest.raises(ExampleError) as raised:
        write_summaries(world.folder, found, writer, allowed)
    for words in (f"{left_out} of 80", f"early_experience.max_dropped={allowed:g}", str(world.folder / SUMMARIES_FILE)):
        assert words in str(raised.value)
    # They are on disk to be looked at.
    assert sum(not text for text in read_summaries(world.folder).values()) == left_out


@pytest.mark.parametrize("settings", [{}, {"include_expert_transition": False}, {"max_refused": 0.1}])
@pytest.mark.parametrize("budget", ["full", "one_to_one", "matched"])
def test_only_what_is_learned_is_summarised(world: World, budget: str, settings: dict[str, Any]) -> None:
    stages: dict[str, dict[str, Any]] = {"world_model": {"batch_size": 2}, "imitation": {"batch_size": 1}}
    raw = world.curriculum(config(stages, budget=budget, **settings)).examples("world_model").examples
    early = given(stages, budget=budget, **settings)
    curriculum = world.curriculum(early)
    found = curriculum.changes()
    assert [change.transition[:12] for change in found] == [example.provenance.rsplit(", ", 1)[1] for example in raw]
    write_summaries(world.folder, found, Scripted([found[0].transition, found[5].transition]), 0.5)
    examples, modelled = steps_taken(curriculum, early, "world_model")
    assert examples == len(found) - 2
    if budget == "matched":
        # What was left out goes to imitation: both stages together take the steps of imitation alone.
        assert modelled == math.ceil(examples / 2)
        assert modelled + steps_taken(curriculum, early, "imitation")[1] == world.states


def test_where_nothing_is_summarised_nothing_is_asked_for(world: World) -> None:
    assert world.curriculum(config(STAGES)).changes() == []
    assert world.curriculum(given({"imitation": {}})).changes() == []


def test_summaries_of_other_branches_are_refused(world: World) -> None:
    early = given()
    with pytest.raises(StoreError, match=f"{SUMMARIES_FILE} is missing"):
        world.curriculum(early).examples("world_model")
    write_summaries(world.folder, world.curriculum(early).changes()[1:], Scripted(), 0.0)
    with pytest.raises(StoreError, match=r"trajectory 0, step 0.*other branches"):
        world.curriculum(early).examples("world_model")


# The policy writes


@dataclass
class Client:
    """Stands for verl's client of rollout servers: it answers with what it was asked, up to its end token or not."""

    cut: int = 10_000
    asked: list[str] = field(default_factory=list)
    sampled: list[dict[str, Any]] = field(default_factory=list)

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.asked.append(text_of(prompt_ids))
        self.sampled.append(sampling_params)
        ids = [*map(ord, f"Text {len(self.asked)}."), 0]
        return SimpleNamespace(token_ids=ids if len(prompt_ids) < self.cut else ids[:-1])


class Tokenizer:
    eos_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return text_of([number for number in ids if number])


def policy(client: Client, max_prompt: int | None = None) -> PolicyWriter:
    settings = ReflectionConfig(temperature=0.3, max_tokens=77)
    return PolicyWriter(client, ENCODER, Tokenizer(), settings, {"top_p": 0.8}, max_prompt)


def flat(messages: list[Message]) -> str:
    return text_of(letters(messages))


def test_one_writer_writes_summaries_and_rationales(world: World) -> None:
    client = Client()
    writer = policy(client)
    found = summary_requests(world.trajectories, world.outcomes)[:3]
    assert write_summaries(world.folder, found, writer, 0.0) == {"written": 3, "empty": 0}
    assert list(read_summaries(world.folder).values()) == ["Text 1.", "Text 2.", "Text 3."]
    states = situations(world.trajectories, world.outcomes, 8)[:2]
    reflections = write_rationales(states, writer, ())
    assert [(item.text, item.writer) for item in reflections] == [("Text 4.", "policy"), ("Text 5.", "policy")]
    assert client.asked == [*(flat(item.prompt) for item in found), *(flat(writer_prompt(item)) for item in states)]
    assert client.sampled == [{"top_p": 0.8, "temperature": 0.3, "max_tokens": 77}] * 5


def test_what_is_cut_off_and_what_is_too_long_to_ask_is_empty(world: World) -> None:
    found = summary_requests(world.trajectories, world.outcomes)[:3]
    found[1] = replace(found[1], observation="A long page. " * 100)
    assert policy(Client(cut=1000)).write(found) == ["Text 1.", "", "Text 3."]
    client = Client()
    assert policy(client, max_prompt=1000).write(found) == ["Text 1.", "", "Text 2."]
    assert len(client.asked) == 2


def test_the_policy_is_asked_through_the_encoder_of_its_rollouts(world: World) -> None:
    seen: list[list[Message]] = []
    encoder = Encoder(lambda messages: seen.append(messages) or [1], list)  # type: ignore[func-returns-value]
    (change, *_) = summary_requests(world.trajectories, world.outcomes)
    PolicyWriter(Client(), encoder, Tokenizer(), ReflectionConfig(), {}).write([change])
    assert seen == [change.prompt]
