"""The examples and the steps of each stage, against a calculation from the meaning of each setting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.stage_worlds import LENGTH, World, config, steps_taken, text_of

from verl_ee.errors import ExampleError
from verl_ee.experience.store import Branch, Transition, write_store
from verl_ee.objectives.examples import Example
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.schedule import batches, optimizer_steps_of

# Budgets


SIZES = [
    # trajectories, alternatives, batch size and epochs of the world model, and of imitation
    (4, 3, (4, 1), (4, 1)),
    (4, 3, (16, 1), (16, 3)),
    (7, 8, (16, 1), (16, 2)),
    (3, 1, (2, 1), (5, 4)),
    (6, 5, (7, 1), (3, 1)),
    (1, 8, (1, 1), (1, 2)),
]


@pytest.mark.parametrize("model_epochs", [1, 2, 3])
@pytest.mark.parametrize(("trajectories", "others", "model", "imitation"), SIZES)
def test_the_full_budget_takes_every_branch_and_then_all_of_imitation(
    trajectories: int,
    others: int,
    model: tuple[int, int],
    imitation: tuple[int, int],
    model_epochs: int,
    tmp_path: Path,
) -> None:
    world = World(tmp_path, trajectories, others)
    stages = {
        "world_model": {"batch_size": model[0], "epochs": model_epochs},
        "imitation": {"batch_size": imitation[0], "epochs": imitation[1]},
    }
    given = config(stages)
    branches, states = world.states * (others + 1), world.states
    assert steps_taken(world.stage_data(given), given, "world_model") == (
        branches,
        model_epochs * math.ceil(branches / model[0]),
    )
    assert steps_taken(world.stage_data(given), given, "imitation") == (
        states,
        imitation[1] * math.ceil(states / imitation[0]),
    )


@pytest.mark.parametrize(("trajectories", "others", "model", "imitation"), SIZES)
def test_the_one_to_one_budget_takes_as_many_branches_as_states_and_then_all_of_imitation(
    trajectories: int, others: int, model: tuple[int, int], imitation: tuple[int, int], tmp_path: Path
) -> None:
    world = World(tmp_path, trajectories, others)
    stages = {
        "world_model": {"batch_size": model[0], "epochs": 2},
        "imitation": {"batch_size": imitation[0], "epochs": imitation[1]},
    }
    given = config(stages, budget="one_to_one")
    states = world.states
    assert steps_taken(world.stage_data(given), given, "world_model") == (states, 2 * math.ceil(states / model[0]))
    assert steps_taken(world.stage_data(given), given, "imitation") == (
        states,
        imitation[1] * math.ceil(states / imitation[0]),
    )


def test_episodes_are_the_samples_of_imitation_and_states_those_of_the_world_model(tmp_path: Path) -> None:
    world = World(tmp_path, 6, 2)
    given = config({"world_model": {}, "imitation": {}}, budget="one_to_one").model_copy(
        update={"samples": "episode", "history_length": None, "max_turn_tokens": 64}
    )
    assert world.states > 6
    data = world.stage_data(given)
    assert steps_taken(data, given, "world_model") == (world.states, math.ceil(world.states / 4))
    assert steps_taken(data, given, "imitation") == (6, 2)


@pytest.mark.parametrize(("left", "expected"), [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_the_one_to_one_budget_takes_what_there_is_where_branches_are_fewer(
    left: float, expected: int, tmp_path: Path
) -> None:
    # Without the expert's own outcomes, and with a share of the states that have one alternative.
    world = World(tmp_path, 4, 1)
    kept = [item for item in world.branches if item.proposer != "expert"][: int(left * world.states)]
    transitions = [Transition(item.transition, "", "", (), item.outcome) for item in kept]
    branches = [Branch(item.ref, 1, "x", "", "", item.transition) for item in kept]
    write_store(world.store, transitions, branches, {})
    given = config({"world_model": {}}, budget="one_to_one")
    if expected:
        assert steps_taken(world.stage_data(given), given, "world_model") == (expected, math.ceil(expected / 4))
    else:
        with pytest.raises(ExampleError, match="'world_model' has no examples"):
            world.stage_data(given).examples("world_model")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
@pytest.mark.parametrize(
    ("trajectories", "others", "model", "imitation"), [size for size in SIZES if size != (6, 5, (7, 1), (3, 1))]
)
def test_the_matched_budget_takes_as_many_steps_in_both_stages_as_imitation_alone(
    trajectories: int, others: int, model: tuple[int, int], imitation: tuple[int, int], share: float, tmp_path: Path
) -> None:
    world = World(tmp_path, trajectories, others)
    stages = {
        "world_model": {"batch_size": model[0], "epochs": model[1]},
        "imitation": {"batch_size": imitation[0], "epochs": imitation[1]},
    }
    given = config(stages, budget="matched", matched_share=share)
    alone = imitation[1] * math.ceil(world.states / imitation[0])
    data = world.stage_data(given)
    branches, modelled = steps_taken(data, given, "world_model")
    states, imitated = steps_taken(data, given, "imitation")
    assert modelled + imitated == alone
    # The share is met as well as whole steps can meet it, and every batch is full.
    assert abs(modelled - share * alone) <= 0.5
    assert branches == modelled * model[0]
    assert states == world.states
    # Without a world model there is nothing to match.
    only = config({"imitation": stages["imitation"]}, budget="matched", matched_share=share)
    assert steps_taken(world.stage_data(only), only, "imitation") == (states, alone)


@pytest.mark.parametrize(("epochs", "others"), [(2, 5), (3, 8), (1, 0)], ids=["odd", "odder", "too few branches"])
def test_the_matched_budget_holds_whatever_the_epochs_of_the_world_model_and_however_few_branches(
    epochs: int, others: int, tmp_path: Path
) -> None:
    world = World(tmp_path, 2, others)
    stages = {"world_model": {"epochs": epochs, "batch_size": 4}, "imitation": {"epochs": 10, "batch_size": 10}}
    given = config(stages, budget="matched", matched_share=0.5)
    data = world.stage_data(given)
    modelled, imitated = steps_taken(data, given, "world_model"), steps_taken(data, given, "imitation")
    assert modelled[1] + imitated[1] == 10


@pytest.mark.parametrize(
    ("share", "modelled", "first", "second"),
    [
        # Alone, twenty states take 2 * 5 and 3 * 10 steps: 40.
        (0.5, 20, 5, 15),
        (0.25, 10, 7, 23),
        (0.1, 4, 9, 27),
        (0.95, 38, 1, 1),
    ],
)
def test_the_matched_budget_is_that_of_all_stages_of_imitation_together(
    share: float, modelled: int, first: int, second: int, tmp_path: Path
) -> None:
    world = World(tmp_path, 4, 30)
    stages = {
        "world_model": {"batch_size": 4},
        "imitation": {"batch_size": 4, "epochs": 2},
        "again": {"objectives": ["imitation"], "batch_size": 2, "epochs": 3},
    }
    given = config(stages, budget="matched", matched_share=share)
    data = world.stage_data(given)
    taken = {name: steps_taken(data, given, name) for name in stages}
    assert taken == {"world_model": (4 * modelled, modelled), "imitation": (20, first), "again": (20, second)}
    assert sum(steps for _, steps in taken.values()) == 40


def test_the_matched_budget_is_shared_by_two_stages_of_the_world_model(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 30)
    stages = {
        "world_model": {"batch_size": 4},
        "more": {"objectives": ["world_model"], "batch_size": 8, "epochs": 2},
        "imitation": {"batch_size": 1, "epochs": 2},
    }
    given = config(stages, budget="matched", matched_share=0.5)
    data = world.stage_data(given)
    # Of 40 steps 20 are the world model's: 40 branches take 10 in the first stage, and 2 * 5 in the second.
    assert {name: steps_taken(data, given, name) for name in stages} == {
        "world_model": (40, 10),
        "more": (40, 10),
        "imitation": (20, 20),
    }


# Which branches


@pytest.mark.parametrize("included", [True, False])
def test_the_expert_s_own_outcomes_are_learned_or_not(included: bool, tmp_path: Path) -> None:
    world = World(tmp_path, 3, 2, 1)
    given = config({"world_model": {}}, include_expert_transition=included)
    examples = world.stage_data(given).examples("world_model")
    expected = [item for item in world.branches if included or item.proposer != "expert"]
    assert len(expected) == world.states * (4 if included else 3)
    assert [example.provenance.split(", ")[2] for example in examples] == [item.transition[:12] for item in expected]
    told = {text_of(example.target) for example in examples}
    for item in world.branches:
        assert (f"<observation> {item.outcome.observation} </observation>" in told) == (
            included or item.proposer != "expert"
        )


@pytest.mark.parametrize("budget", ["one_to_one", "matched"])
def test_what_a_budget_leaves_out_is_drawn_from_all_branches(budget: str, tmp_path: Path) -> None:
    world = World(tmp_path, 4, 7, 2)
    stages = {"world_model": {"batch_size": 2}, "imitation": {"batch_size": 1, "epochs": 2}}
    given = config(stages, budget=budget)
    examples = world.stage_data(given).examples("world_model")
    origins = [example.provenance for example in examples]
    assert len(origins) == len(set(origins))
    # They come from every trajectory and stay in the order of the file.
    assert {origin.split(",")[0] for origin in origins} == {f"trajectory {number}" for number in range(4)}
    everything = [example.provenance for example in world.stage_data(config(stages)).examples("world_model")]
    assert origins == [origin for origin in everything if origin in set(origins)]
    other = world.stage_data(config(stages, budget=budget, seed=1)).examples("world_model")
    assert [example.provenance for example in other] != origins


# Stages


def by_objective(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.objective for example in examples)


def test_reflection_and_imitation_are_learned_in_one_pass(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 3)
    world.write_rationales()
    given = config({"reflection": {"objectives": ["imitation", "reflection"], "epochs": 3, "batch_size": 8}})
    data = world.stage_data(given)
    examples = data.examples("reflection")
    states = world.states
    assert by_objective(examples) == {"imitation": states, "reflection": states}
    steps = data.steps("reflection", len(examples))
    assert steps == 3 * math.ceil(2 * states / 8) == optimizer_steps_of(given.stages["reflection"], 2 * states)
    run = list(batches(given.stages["reflection"], examples, steps))
    assert Counter(example.provenance for batch in run for example in batch) == Counter(
        {example.provenance: 3 for example in examples}
    )
    # They are shuffled together: most batches hold both.
    assert sum(len(by_objective(batch)) == 2 for batch in run) > 0.7 * len(run)
    # The two of a state read the same, and end with the same action.
    pairs: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        pairs.setdefault(example.prompt, []).append(example)
    for pair in pairs.values():
        assert by_objective(pair) == {"imitation": 1, "reflection": 1}
        assert len({text_of(example.target).splitlines()[-1] for example in pair}) == 1


def test_a_rejected_rationale_is_no_example_of_the_stage_and_its_state_is_still_imitated(tmp_path: Path) -> None:
    world = World(tmp_path, 2, 1)

    class Mixed(TemplateWriter):
        def write(self, situations: Sequence[Any], /) -> Iterator[tuple[Any, str]]:
            for item, text in super().write(situations):
                yield item, "No." if item.ref.step == 2 else text

    to_explain = situations(world.trajectories, world.branches, 8)
    write_rationales(world.folder, to_explain, Mixed(), ("length",))
    given = config({"reflection": {"objectives": ["reflection", "imitation"]}})
    examples = world.stage_data(given).examples("reflection")
    assert by_objective(examples) == {"imitation": 10, "reflection": 8}
    reflected = [example.provenance for example in examples if example.objective == "reflection"]
    assert not any("step 2" in origin for origin in reflected)


def test_everything_follows_from_the_seeds(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 6, 3)
    world.write_rationales()
    stages: dict[str, dict[str, Any]] = {
        "world_model": {},
        "reflection": {"objectives": ["imitation", "reflection"]},
    }
    settings: dict[str, Any] = {"budget": "one_to_one", "max_refused": 0.2}
    runs = [
        {name: list(world.stage_data(config(stages, **settings, seed=seed)).examples(name)) for name in stages}
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["world_model"] != runs[2]["world_model"]
    # The seed of what is left out does not touch what is not sampled.
    assert runs[0]["reflection"] == runs[2]["reflection"]


def test_an_example_that_is_too_long_is_left_out_and_too_many_stop_the_stage(tmp_path: Path) -> None:
    world = World(tmp_path, 2, 0)
    given = config({"imitation": {}})
    lengths = sorted(map(len, world.stage_data(given).examples("imitation")))
    with pytest.raises(ExampleError, match="imitation"):
        world.stage_data(given, lengths[-1] - 1).examples("imitation")
    assert not world.stage_data(given, lengths[-1]).examples("imitation").dropped


def test_a_thought_of_the_expert_is_learned_by_imitation_and_read_by_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, 3, 2)
    thoughts = {(index, step): f"THOUGHT {index} {step}" for index in range(3) for step in range(LENGTH)}
    # The last step of each has none, as in files that keep them where an expert gave one.
    thoughts |= {(index, LENGTH - 1): "" for index in range(3)}
    world.trajectories = [
        replace(
            trajectory,
            steps=tuple(
                replace(given, thought=thoughts[index, step] or None) for step, given in enumerate(trajectory.steps)
            ),
        )
        for index, trajectory in enumerate(world.trajectories)
    ]
    world.write_rationales()
    given = config({"world_model": {}, "imitation": {}, "reflection": {}})
    data = world.stage_data(given)
    by_stage = {name: data.examples(name) for name in given.stages}
    for example, ((index, step), thought) in zip(by_stage["imitation"], sorted(thoughts.items()), strict=True):
        action = world.trajectories[index].steps[step].action
        assert text_of(example.target) == (f"{thought}\n" if thought else "") + f"Action: {action}"
    for examples in by_stage.values():
        assert not any("THOUGHT" in text_of(example.prompt) for example in examples)
    for name in ("world_model", "reflection"):
        assert not any("THOUGHT" in text_of(example.target) for example in by_stage[name])
    # They would be there if states had them: eight turns of the past are shown.
    assert any("> press 0" in text_of(example.prompt) for example in by_stage["world_model"])


def test_what_an_expert_did_after_the_task_was_solved_is_known_to_the_world_model_alone(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 1)
    # In the first two trajectories the task is solved before the last two of five steps.
    world.trajectories = [
        replace(
            item, steps=tuple(replace(given, solved=index < 2 and step > 2) for step, given in enumerate(item.steps))
        )
        for index, item in enumerate(world.trajectories)
    ]
    stages = {"world_model": {}, "imitation": {"epochs": 2}}
    data = world.stage_data(config(stages))
    origins = [example.provenance for example in data.examples("imitation")]
    assert origins == [
        f"trajectory {index}, step {step}" for index in range(4) for step in range(5) if index > 1 or step < 3
    ]
    assert len(data.examples("world_model")) == len(world.branches) == 40
    # A budget counts the states that are imitated: 16, and 2 * 4 steps alone.
    one_to_one = config(stages, budget="one_to_one")
    assert steps_taken(world.stage_data(one_to_one), one_to_one, "world_model")[0] == 16
    matched = config(stages, budget="matched")
    taken = [steps_taken(world.stage_data(matched), matched, name)[1] for name in stages]
    assert taken == [4, 4]
