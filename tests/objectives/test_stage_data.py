"""What each stage learns from and for how many steps, against a calculation from what each setting promises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.stage_worlds import LENGTH, World, config, result, steps_taken, text_of

from verl_ee.config import WorldModelConfig
from verl_ee.errors import ExampleError
from verl_ee.experience.store import Branch, Transition, write_store
from verl_ee.objectives.examples import Example
from verl_ee.objectives.reflection.rationales import write_rationale_file
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.schedule import batches, optimizer_steps_of
from verl_ee.objectives.stage_data import allowed_branches

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
    assert steps_taken(world.curriculum(given), given, "world_model") == (
        branches,
        model_epochs * math.ceil(branches / model[0]),
    )
    assert steps_taken(world.curriculum(given), given, "imitation") == (
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
    assert steps_taken(world.curriculum(given), given, "world_model") == (states, 2 * math.ceil(states / model[0]))
    assert steps_taken(world.curriculum(given), given, "imitation") == (
        states,
        imitation[1] * math.ceil(states / imitation[0]),
    )


@pytest.mark.parametrize(("left", "expected"), [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_the_one_to_one_budget_takes_what_there_is_where_branches_are_fewer(
    left: float, expected: int, tmp_path: Path
) -> None:
    # Without the expert's own outcomes, and with a share of the states that have one alternative.
    world = World(tmp_path, 4, 1)
    kept = [item for item in world.outcomes if item.proposer != "expert"][: int(left * world.states)]
    facts = [Transition(o.transition, "", "", (), o.outcome) for o in kept]
    write_store(world.store, facts, [Branch(o.ref, 1, "x", "", "", o.transition) for o in kept], {})
    given = config({"world_model": {}}, budget="one_to_one")
    if expected:
        assert steps_taken(world.curriculum(given), given, "world_model") == (expected, math.ceil(expected / 4))
    else:
        with pytest.raises(ExampleError, match="'world_model' has no examples"):
            world.curriculum(given).examples("world_model")


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
    curriculum = world.curriculum(given)
    branches, modelled = steps_taken(curriculum, given, "world_model")
    states, imitated = steps_taken(curriculum, given, "imitation")
    assert modelled + imitated == alone
    # The share is met as well as whole steps can meet it, and every batch is full.
    assert abs(modelled - share * alone) <= 0.5
    assert branches == modelled * model[0]
    assert states == world.states
    # Without a world model there is nothing to match.
    only = config({"imitation": stages["imitation"]}, budget="matched", matched_share=share)
    assert steps_taken(world.curriculum(only), only, "imitation") == (states, alone)


@pytest.mark.parametrize(("epochs", "others"), [(2, 5), (3, 8), (1, 0)], ids=["odd", "odder", "too few branches"])
def test_the_matched_budget_holds_whatever_the_epochs_of_the_world_model_and_however_few_branches(
    epochs: int, others: int, tmp_path: Path
) -> None:
    world = World(tmp_path, 2, others)
    stages = {"world_model": {"epochs": epochs, "batch_size": 4}, "imitation": {"epochs": 10, "batch_size": 10}}
    given = config(stages, budget="matched", matched_share=0.5)
    curriculum = world.curriculum(given)
    modelled, imitated = steps_taken(curriculum, given, "world_model"), steps_taken(curriculum, given, "imitation")
    assert modelled[1] + imitated[1] == 10


# Which branches


@pytest.mark.parametrize("included", [True, False])
def test_the_expert_s_own_outcomes_are_learned_or_not(included: bool, tmp_path: Path) -> None:
    world = World(tmp_path, 3, 2, 1)
    given = config({"world_model": {}}, include_expert_transition=included)
    found = world.curriculum(given).examples("world_model").examples
    expected = [item for item in world.outcomes if included or item.proposer != "expert"]
    assert len(expected) == world.states * (4 if included else 3)
    assert [example.provenance.split(", ")[2] for example in found] == [item.transition[:12] for item in expected]
    told = {text_of(example.target) for example in found}
    for item in world.outcomes:
        assert (f"<observation> {item.outcome.observation} </observation>" in told) == (
            included or item.proposer != "expert"
        )


SHARES = ["0", "0.1", "0.25", "0.3", "0.5", "0.75", "0.9", "1"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("taken", "refused"), [(30, 30), (9, 100), (100, 9), (7, 3), (0, 20), (20, 0), (1, 1)])
def test_no_larger_share_is_refused_actions_than_allowed_and_no_more_are_left_out_than_needed(
    taken: int, refused: int, share: str
) -> None:
    outcomes = [result(f"taken {number}", step=number) for number in range(taken)]
    outcomes += [result(f"refused {number}", False, step=100 + number) for number in range(refused)]
    kept = allowed_branches(outcomes, WorldModelConfig(max_refused=float(share)))
    left = [item for item in kept if not item.outcome.valid]
    # All that were taken, and as many of the others as the share allows, in their order.
    assert [item for item in kept if item.outcome.valid] == outcomes[:taken]
    assert kept == [item for item in outcomes if item in kept]
    fits = [n for n in range(refused + 1) if n == 0 or Fraction(n, n + taken) <= Fraction(share)]
    assert len(left) == max(fits)


def test_the_cap_on_refused_actions_is_exact_for_every_share_in_percent() -> None:
    wrong = []
    for percent in range(101):
        for taken in (1, 2, 3, 5, 7, 20, 29, 33, 43, 47, 59):
            outcomes = [result("taken")] * taken
            outcomes += [result("refused", False, step=number) for number in range(150)]
            kept = allowed_branches(outcomes, WorldModelConfig(max_refused=percent / 100))
            fits = [n for n in range(151) if n == 0 or 100 * n <= percent * (n + taken)]
            if len(kept) - taken != max(fits):
                wrong.append((percent, taken, len(kept) - taken, max(fits)))
    assert wrong == []


def test_what_is_left_out_is_chosen_by_chance_alone() -> None:
    outcomes = [result(f"refused {number}", False, step=number) for number in range(20)]
    outcomes += [result("taken")] * 5
    count = Counter(
        item.ref.step
        for seed in range(400)
        for item in allowed_branches(outcomes, WorldModelConfig(max_refused=0.5, seed=seed))
        if not item.outcome.valid
    )
    # Each of twenty is among the five that stay in a quarter of the draws: 100 times, give or take 8.7.
    assert sum(count.values()) == 400 * 5
    assert set(count) == set(range(20))
    assert all(60 < count[number] < 140 for number in range(20))


@pytest.mark.parametrize("budget", ["one_to_one", "matched"])
def test_what_a_budget_leaves_out_is_drawn_from_all_branches(budget: str, tmp_path: Path) -> None:
    world = World(tmp_path, 4, 7, 2)
    stages = {"world_model": {"batch_size": 2}, "imitation": {"batch_size": 1, "epochs": 2}}
    given = config(stages, budget=budget)
    found = world.curriculum(given).examples("world_model").examples
    places = [example.provenance for example in found]
    assert len(places) == len(set(places))
    # They come from every trajectory and stay in the order of the file.
    assert {place.split(",")[0] for place in places} == {f"trajectory {number}" for number in range(4)}
    everything = [example.provenance for example in world.curriculum(config(stages)).examples("world_model").examples]
    assert places == [place for place in everything if place in set(places)]
    other = world.curriculum(config(stages, budget=budget, seed=1)).examples("world_model").examples
    assert [example.provenance for example in other] != places


# Stages


def by_objective(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.objective for example in examples)


def test_reflection_and_imitation_are_learned_in_one_pass(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 3)
    world.reflect()
    given = config({"reflection": {"objectives": ["imitation", "reflection"], "epochs": 3, "batch_size": 8}})
    curriculum = world.curriculum(given)
    found = curriculum.examples("reflection").examples
    states = world.states
    assert by_objective(found) == {"imitation": states, "reflection": states}
    steps = curriculum.steps("reflection", len(found))
    assert steps == 3 * math.ceil(2 * states / 8) == optimizer_steps_of(given.stages["reflection"], 2 * states)
    run = list(batches(given.stages["reflection"], found, steps))
    assert Counter(example.provenance for batch in run for example in batch) == Counter(
        {example.provenance: 3 for example in found}
    )
    # They are shuffled together: most batches hold both.
    assert sum(len(by_objective(batch)) == 2 for batch in run) > 0.7 * len(run)
    # The two of a state read the same, and end with the same action.
    pairs: dict[tuple[int, ...], list[Example]] = {}
    for example in found:
        pairs.setdefault(example.prompt, []).append(example)
    for pair in pairs.values():
        assert by_objective(pair) == {"imitation": 1, "reflection": 1}
        assert len({text_of(example.target).splitlines()[-1] for example in pair}) == 1


def test_a_rejected_rationale_is_no_example_of_the_stage_and_its_state_is_still_imitated(tmp_path: Path) -> None:
    world = World(tmp_path, 2, 1)

    class Mixed(TemplateWriter):
        def write(self, situations: Sequence[Any]) -> list[str]:
            texts = super().write(situations)
            return ["No." if item.step == 2 else text for item, text in zip(situations, texts, strict=True)]

    found = situations(world.trajectories, world.outcomes, 8)
    write_rationale_file(world.folder, found, Mixed(), ("length",), 0.0)
    given = config({"reflection": {"objectives": ["reflection", "imitation"]}})
    examples = world.curriculum(given).examples("reflection").examples
    assert by_objective(examples) == {"imitation": 10, "reflection": 8}
    reflected = [example.provenance for example in examples if example.objective == "reflection"]
    assert not any("step 2" in place for place in reflected)


def test_everything_follows_from_the_seeds(tmp_path: Path) -> None:
    world = World(tmp_path, 4, 6, 3)
    world.reflect()
    stages: dict[str, dict[str, Any]] = {
        "world_model": {},
        "reflection": {"objectives": ["imitation", "reflection"]},
    }
    settings: dict[str, Any] = {"budget": "one_to_one", "max_refused": 0.2}
    runs = [
        {name: world.curriculum(config(stages, **settings, seed=seed)).examples(name).examples for name in stages}
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["world_model"] != runs[2]["world_model"]
    # The seed of what is left out does not touch what is not sampled.
    assert runs[0]["reflection"] == runs[2]["reflection"]


def test_an_example_that_is_too_long_is_left_out_and_too_many_stop_the_stage(tmp_path: Path) -> None:
    world = World(tmp_path, 2, 0)
    given = config({"imitation": {}})
    lengths = sorted(map(len, world.curriculum(given).examples("imitation").examples))
    with pytest.raises(ExampleError, match="imitation"):
        world.curriculum(given, lengths[-1] - 1).examples("imitation")
    assert not world.curriculum(given, lengths[-1]).examples("imitation").dropped


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
    world.reflect()
    given = config({"world_model": {}, "imitation": {}, "reflection": {}})
    curriculum = world.curriculum(given)
    found = {name: curriculum.examples(name).examples for name in given.stages}
    for example, (place, thought) in zip(found["imitation"], sorted(thoughts.items()), strict=True):
        action = world.trajectories[place[0]].steps[place[1]].action
        assert text_of(example.target) == (f"{thought}\n" if thought else "") + f"Action: {action}"
    for examples in found.values():
        assert not any("THOUGHT" in text_of(example.prompt) for example in examples)
    for name in ("world_model", "reflection"):
        assert not any("THOUGHT" in text_of(example.target) for example in found[name])
    # They would be there if states had them: eight turns of the past are shown.
    assert any("> press 0" in text_of(example.prompt) for example in found["world_model"])
