"""The method to restore a state that an environment gets, chosen in the process that holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.games import (
    CountedGame,
    Dice,
    Game,
    HollowGame,
    LaboriousGame,
    LimitedGame,
    SavedDice,
    SavedGame,
    SavedLaboriousGame,
    WornGame,
    expert,
    id_of,
    shown,
    whole,
)
from support.hosts import chosen_restore, supervised

from verl_ee.config import CollectConfig, EnvironmentConfig, parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.branching.restore import cheapest
from verl_ee.experience.branching.restore_trial import FORKS

LENGTH = 5
"""Steps of the sample."""
SNAPSHOT_TRIAL, FORK_PROOF, WALK = Usage(2 * LENGTH, 1), Usage(2 * LENGTH, 1), Usage(LENGTH, 1)
FORK_TIMING = Usage(FORKS, 1)
ROUNDS = 1_000_000
"""Rounds of a hash that take at least twenty times as long as a fork."""


@pytest.mark.parametrize("requested", ["snapshot", "fork", "replay"])
def test_a_requested_method_is_taken_untried_where_it_is_possible(requested: str) -> None:
    assert chosen_restore(SavedGame, requested, forkable=True) == (requested, Usage())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"snapshot": 1.0, "fork": 1.0, "replay": 1.0}, "snapshot"),
        ({"snapshot": 1.0, "fork": 0.7, "replay": 0.7}, "snapshot"),
        ({"snapshot": 1.0, "fork": 0.6, "replay": 0.5}, "fork"),
        ({"snapshot": 1.0, "fork": 0.6, "replay": 0.3}, "replay"),
        ({"snapshot": 1.0, "fork": 9.0, "replay": 0.6}, "replay"),
        ({"fork": 0.0045, "replay": 0.00025}, "replay"),
        ({"fork": 0.0045, "replay": 0.0035}, "fork"),
        ({"replay": 1.0, "snapshot": 1.4}, "snapshot"),
        ({"replay": 1.0}, "replay"),
    ],
)
def test_a_later_method_is_taken_only_if_it_is_much_cheaper(seconds: dict[str, float], expected: str) -> None:
    assert cheapest(seconds) == expected


@pytest.mark.parametrize(("forkable", "fork_trial"), [(True, FORK_TIMING), (None, FORK_PROOF)])
def test_a_game_whose_replay_is_cheaper_than_a_fork_is_replayed(forkable: bool | None, fork_trial: Usage) -> None:
    expected = ("replay", fork_trial + WALK)
    assert chosen_restore(LaboriousGame, forkable=forkable, fork_rounds=ROUNDS) == expected


@pytest.mark.parametrize(("forkable", "fork_trial"), [(True, FORK_TIMING), (None, FORK_PROOF)])
def test_a_game_whose_reset_takes_long_is_forked(forkable: bool | None, fork_trial: Usage) -> None:
    expected = ("fork", fork_trial + WALK)
    assert chosen_restore(LaboriousGame, forkable=forkable, reset_rounds=ROUNDS) == expected


def test_a_game_with_snapshots_goes_back_to_them() -> None:
    expected = ("snapshot", SNAPSHOT_TRIAL + FORK_TIMING + WALK)
    rounds = {"reset_rounds": ROUNDS, "fork_rounds": ROUNDS}
    assert chosen_restore(SavedLaboriousGame, forkable=True, **rounds) == expected


def test_a_game_whose_snapshots_take_long_is_restored_otherwise() -> None:
    assert chosen_restore(SavedLaboriousGame, forkable=False, restore_rounds=ROUNDS)[0] == "replay"
    rounds = {"reset_rounds": ROUNDS, "restore_rounds": ROUNDS}
    assert chosen_restore(SavedLaboriousGame, forkable=True, **rounds)[0] == "fork"


@pytest.mark.parametrize("cls", [HollowGame, WornGame])
def test_snapshots_that_do_not_give_the_state_back_are_not_used(cls: type[Game]) -> None:
    assert chosen_restore(cls, forkable=False)[0] == "replay"


def test_snapshots_under_a_wrapper_that_counts_steps_are_exact() -> None:
    assert chosen_restore(LimitedGame, forkable=False, sample=expert(length=6))[0] == "snapshot"


def test_snapshots_under_a_wrapper_whose_state_cannot_be_saved_are_not_used() -> None:
    assert chosen_restore(CountedGame, forkable=False) == ("replay", Usage())
    assert chosen_restore(CountedGame, forkable=True)[0] in ("fork", "replay")
    words = r"^--restore=snapshot, but .* the wrapper Counted, .*'done', list.* no snapshot\(\) .*--restore=auto"
    with pytest.raises(EnvError, match=words):
        chosen_restore(CountedGame, "snapshot")


def test_the_only_possible_method_is_not_tried() -> None:
    assert chosen_restore(Game, forkable=False) == ("replay", Usage())
    assert chosen_restore(SavedDice, forkable=False) == ("snapshot", Usage())
    assert chosen_restore(Dice, forkable=True) == ("fork", Usage())


def test_a_nondeterministic_environment_that_declares_nothing_is_tried() -> None:
    assert chosen_restore(Dice) == ("fork", FORK_PROOF)


@pytest.mark.parametrize(
    ("cls", "forkable", "expected"), [(SavedGame, True, "snapshot"), (Game, True, "fork"), (Game, None, "replay")]
)
def test_a_sample_that_cannot_be_played_leaves_the_first_method_that_is_possible(
    cls: type[Game], forkable: bool | None, expected: str
) -> None:
    wrong: ExpertTrajectory = replace(expert(length=LENGTH), final_observation="You see a dragon.")
    assert chosen_restore(cls, sample=wrong, forkable=forkable)[0] == expected


def test_a_nondeterministic_environment_is_never_replayed() -> None:
    for requested in ("auto", "replay"):
        with pytest.raises(EnvError) as raised:
            chosen_restore(Dice, requested, forkable=False)
        for word in (id_of(Dice), "nondeterministic", "snapshot() and restore()", "forkable = True"):
            assert word in str(raised.value)


def test_a_key_is_named_as_a_user_types_it() -> None:
    stages = {"first": {"objectives": ["imitation"], "epochs": 1, "lr": 1e-4, "batch_size": 1}}
    collect = {"mine": {"restore": "snapshot"}}
    job = {"method": "iwm", "environment": {"id": "?"}, "experts": "?", "stages": stages}
    job |= {"collect": collect, "world_model": {"collect": "mine"}}
    config = parse(job).collect["mine"]
    words = r"^early_experience\.collect\.mine\.restore=snapshot, but .*mine\.restore=auto"
    with pytest.raises(EnvError, match=words), supervised(EnvironmentConfig(id=id_of(Game)), config, expert()):
        pass


@pytest.mark.parametrize("cls", [Game, Dice])
def test_a_snapshot_that_is_not_there_cannot_be_requested(cls: type[Game]) -> None:
    with pytest.raises(EnvError, match=r"^--restore=snapshot, but .* has no snapshot\(\)"):
        chosen_restore(cls, "snapshot", forkable=True)


@pytest.mark.parametrize("cls", [Game, SavedGame])
def test_the_environment_that_was_tried_branches_as_if_it_had_not_been(cls: type[Game]) -> None:
    sample = expert(length=LENGTH)
    with supervised(EnvironmentConfig(id=id_of(cls)), CollectConfig(k=2), sample) as supervisor:
        results = list(supervisor.branch(whole(expert("game 9", 3))))
    for result in results:
        path = ["press 0"] * result.ref.step
        assert len(result.outcomes) == 2
        assert [outcome.observation for outcome in result.outcomes] == [
            shown("game 9", 7, [*path, action]) for action in result.alternatives
        ]
