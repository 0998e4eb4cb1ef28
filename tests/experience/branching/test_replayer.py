"""The proof of a state: instruction, observation, actions in their order, and the outcomes of earlier walks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.games import Game, Info, SavedGame, StepReturn, expert

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import TRIES, StateLostError
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession

ACTIONS = Game().actions


class Other(SavedGame):
    """A game whose info has these values besides or instead."""

    def __init__(self, **info: Any) -> None:
        super().__init__()
        self.info = info

    def view(self) -> tuple[str, Info]:
        observation, info = super().view()
        return observation, {key: value for key, value in (info | self.info).items() if value is not None}


class Tiring(Game):
    """From the second episode on, its fourth action ends it."""

    def __init__(self, says: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.episodes, self.says = 0, says

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepReturn:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.episodes > 1 and len(self.path) == 4:
            if self.says is None:
                return observation, reward, terminated, True, info
            info |= self.says
        return observation, reward, terminated, truncated, info


def replayer_of(env: Game, trajectory: ExpertTrajectory) -> Replayer:
    return Replayer(EnvironmentSession(lambda: env), trajectory, 0)


def lost(replayer: Replayer, step: int) -> StateLostError:
    """Return why a state cannot be reached; every attempt had the same reason."""
    with pytest.raises(StateLostError) as raised:
        replayer.reach(step)
    faults = replayer.take_faults()
    assert len(faults) == TRIES - 1
    assert {fault.kind for fault in faults} == {raised.value.kind}
    return raised.value


def test_another_instruction_is_another_state() -> None:
    error = lost(replayer_of(Other(task="Pull."), expert()), 0)
    assert error.kind == "instruction"
    for word in ("'Pull.'", "'Press.'", 'info["task"]', "at step 0"):
        assert word in str(error)


@pytest.mark.parametrize("info", [{"task": None}, {"task": "Press."}], ids=str)
def test_an_instruction_that_the_environment_does_not_give_is_not_compared(info: Info) -> None:
    assert replayer_of(Other(**info), expert()).reach(3).observation == expert().steps[3].observation


def test_a_reversed_list_is_another_state_and_the_message_says_that_only_the_order_differs() -> None:
    error = lost(replayer_of(Other(admissible_actions=ACTIONS[::-1]), expert()), 2)
    assert error.kind == "admissible actions"
    for word in ("same in another order", f"number 0 is {ACTIONS[-1]!r}", f"recorded was {ACTIONS[0]!r}"):
        assert word in str(error)


@pytest.mark.parametrize(
    ("listed", "missing", "added"),
    [
        ((*ACTIONS, "fly"), [], ["fly"]),
        (ACTIONS[1:], [ACTIONS[0]], []),
        (("fly", *ACTIONS[1:]), [ACTIONS[0]], ["fly"]),
        ((*ACTIONS, ACTIONS[0]), [], [ACTIONS[0]]),
    ],
    ids=["longer", "shorter", "another", "twice"],
)
def test_another_list_is_shown_by_what_is_missing_and_what_is_new(
    listed: tuple[str, ...], missing: list[str], added: list[str]
) -> None:
    error = lost(replayer_of(Other(admissible_actions=listed), expert()), 0)
    assert error.kind == "admissible actions"
    assert f"{missing} are missing, {added} were not recorded" in str(error)
    assert "order" not in str(error)


@pytest.mark.parametrize("listed", [list(ACTIONS), None], ids=["list", "none"])
def test_the_same_list_is_the_same_whatever_holds_it_and_none_is_not_compared(listed: list[str] | None) -> None:
    assert replayer_of(Other(admissible_actions=listed), expert()).reach(5).observation == expert().steps[5].observation


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (None, "done was False and is True"),
        ({"valid": None}, "valid was True and is None"),
        ({"outcome_class": "x"}, "outcome_class was '' and is 'x'"),
    ],
    ids=["done", "valid", "class"],
)
def test_an_expert_s_action_that_comes_out_otherwise_on_a_later_walk_is_noticed(
    says: dict[str, Any] | None, words: str
) -> None:
    replayer = replayer_of(Tiring(says), expert())
    replayer.reach(4)
    replayer.reach(2)
    error = lost(replayer, 4)
    assert (error.kind, str(error)) == ("outcome", f"at step 3, the expert's action came out otherwise: {words}")


def test_what_an_expert_file_leaves_open_is_not_compared() -> None:
    trajectory = expert(length=2)
    replayer = replayer_of(SavedGame(), replace(trajectory, final_observation="You see a dragon."))
    assert lost(replayer, 2).kind == "observation"
    # The types of the file's reader decide which of the two may be open.
    open_ended: Any = {"final_observation": None, "instruction": None}
    replayer = replayer_of(Other(task="Pull."), replace(trajectory, **open_ended))
    assert replayer.reach(2).observation == trajectory.final_observation
