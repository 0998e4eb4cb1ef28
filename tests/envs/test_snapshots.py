"""Snapshots under wrappers: their state goes back too, and a wrapper whose state cannot be saved is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import OrderEnforcing, RecordEpisodeStatistics, TimeLimit
from support.games import Game, Info, SavedGame, StepReturn

from verl_ee.envs.snapshots import restore_snapshot, snapshot_problem, take_snapshot
from verl_ee.errors import EnvError

Wrapper = gymnasium.Wrapper[str, str, str, str]
ACTIONS = ("press 1", "press 2", "press 3", "press 4", "press 5", "press 6")


class Alarm(Wrapper):
    """Ends an episode at the third action of a kind; its state is a number, a tuple, and a link to the game."""

    loud = True

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self.count, self.game, self.bell = 0, env.unwrapped, ("ring", (3, None))

    def step(self, action: str) -> StepReturn:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.count += action != "press 1"
        if self.count > 2:
            self.rang = True
        return (
            observation,
            float(reward),
            terminated,
            truncated or self.count > 2,
            info | {"rang": "rang" in vars(self)},
        )


class Diary(Wrapper):
    """Keeps a list."""

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self.pages: list[str] = []

    def step(self, action: str) -> StepReturn:
        self.pages.append(action)
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, float(reward), terminated, len(self.pages) > 3, info


class SavedDiary(Diary):
    """A diary that can go back."""

    def snapshot(self) -> Any:
        return list(self.pages), self.env.snapshot()  # type: ignore[attr-defined]

    def restore(self, state: Any) -> tuple[str, Info]:
        pages, inner = state
        self.pages = list(pages)
        view: tuple[str, Info] = self.env.restore(inner)  # type: ignore[attr-defined]
        return view


class Shared(Wrapper):
    """Keeps a list in its class."""

    seen: list[str] = []  # noqa: RUF012  (that is the point)


class Slotted(Wrapper):
    """Keeps a number where `vars` does not show it."""

    __slots__ = ("count",)


class Forwarding(Wrapper):
    """Forwards what it does not know, as the wrappers of old did, and keeps a set."""

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def played(env: gymnasium.Env[str, str], actions: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """The answers to some actions, without those parts that tell the time."""
    results = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        episode = {key: value for key, value in info.pop("episode", {}).items() if key != "t"}
        results.append((observation, reward, terminated, truncated, info, episode))
    return results


WRAPPED: dict[str, Callable[[], gymnasium.Env[str, str]]] = {
    "none": SavedGame,
    "time-limit": lambda: TimeLimit(SavedGame(), 6),
    "order": lambda: OrderEnforcing(SavedGame()),
    "statistics": lambda: RecordEpisodeStatistics(TimeLimit(OrderEnforcing(SavedGame()), 6)),
    "own": lambda: Alarm(SavedGame()),
    "own-between": lambda: TimeLimit(Alarm(OrderEnforcing(SavedGame())), 6),
    "own-snapshots": lambda: TimeLimit(SavedDiary(SavedGame()), 6),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("step", [0, 2, 4])
def test_what_follows_a_restore_is_what_followed_the_snapshot(
    make: Callable[[], gymnasium.Env[str, str]], step: int
) -> None:
    env = make()
    assert snapshot_problem(env) == ""
    first, _ = env.reset(seed=3, options={"task": "game 0"})
    before = played(env, ACTIONS[:step])
    snapshot = take_snapshot(env)
    expected = played(env, ACTIONS[step:])
    for detour in (("press 7",), ("press 1", "jam", "press 7"), ACTIONS[step:]):
        observation, _ = restore_snapshot(env, snapshot)
        assert observation == (before[-1][0] if before else first)
        played(env, detour)
        restore_snapshot(env, snapshot)
        assert played(env, ACTIONS[step:]) == expected
    fresh = make()
    fresh.reset(seed=3, options={"task": "game 0"})
    assert played(fresh, ACTIONS) == before + expected


REFUSED: dict[str, tuple[Callable[[], gymnasium.Env[str, str]], list[str]]] = {
    "no-snapshots": (lambda: TimeLimit(Game(), 6), ["no snapshot() and restore()"]),
    "list": (
        lambda: TimeLimit(Diary(SavedGame()), 6),
        ["wrapper Diary", "'pages', list", "no snapshot() and restore()"],
    ),
    "class": (lambda: Shared(SavedGame()), ["wrapper Shared", "'seen', list"]),
    "slots": (lambda: Slotted(SavedGame()), ["wrapper Slotted", "'__slots__', tuple"]),
    "forwarded": (lambda: Forwarding(SavedGame()), ["wrapper Forwarding", "'seen', set"]),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_a_state_that_cannot_be_saved_is_refused(make: Callable[[], gymnasium.Env[str, str]], words: list[str]) -> None:
    env = make()
    env.reset(options={"task": "game 0"})
    with pytest.raises(EnvError) as raised:
        take_snapshot(env)
    for word in words:
        assert word in snapshot_problem(env)
        assert word in str(raised.value)


def test_a_wrapper_that_turns_out_to_keep_more_is_refused_from_then_on() -> None:
    env = Alarm(SavedGame())
    env.reset(options={"task": "game 0"})
    take_snapshot(env)
    env.bell = ["ring"]  # type: ignore[assignment]
    with pytest.raises(EnvError, match=r"wrapper Alarm.*'bell', list"):
        take_snapshot(env)
