"""The tasks of the household: each id stands for one house and one goal, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import overload

from verl_ee.envs.household import tables
from verl_ee.envs.household.tables import ROOMS
from verl_ee.envs.household.world import NOWHERE, Goal, House, HouseState, Receptacle, Thing
from verl_ee.errors import EnvError, did_you_mean

SPLITS = ("train", "seen", "unseen")
TASKS_PER_SPLIT = 10_000
SIZES = {"small": (5,), "medium": (5, 4), "large": (6, 5, 4)}
"""Number of receptacles per room."""
_DISTRACTORS_PER_RECEPTACLE = 1.4
_ROOMS_OF_GOAL = {
    tables.CLEAN: ("kitchen", "bathroom"),
    tables.HEAT: ("kitchen",),
    tables.COOL: ("kitchen",),
    tables.LOOK: tuple(name for name, room in ROOMS.items() if room.lamps),
}


class TaskIds(Sequence[str]):
    """The ids "split/0", "split/1"... without a list of them."""

    def __init__(self, split: str, numbers: range) -> None:
        self._split, self._numbers = split, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> TaskIds: ...
    def __getitem__(self, index: int | slice) -> str | TaskIds:
        if isinstance(index, slice):
            return TaskIds(self._split, self._numbers[index])
        return f"{self._split}/{self._numbers[index]}"


def task_ids(split: str) -> TaskIds:
    """Return the ids of a split; ids in a row ask for the six kinds of goals in turn.

    Raises:
        EnvError: if the split is unknown.
    """
    if split not in SPLITS:
        raise EnvError(f"Household has no split {split!r}. {did_you_mean(split, SPLITS)}")
    return TaskIds(split, range(TASKS_PER_SPLIT))


@lru_cache(maxsize=4096)
def house_of(task: str, size: str) -> House:
    """Return the house of a task.

    Raises:
        EnvError: if the task is unknown.
    """
    split, _, number = task.partition("/")
    if split not in SPLITS or not number.isdecimal() or int(number) >= TASKS_PER_SPLIT or str(int(number)) != number:
        raise EnvError(
            f"Household has no task {task!r}. Expected <split>/<number> with a split of {', '.join(SPLITS)} and a "
            f"number below {TASKS_PER_SPLIT}, for example 'train/12'."
        )
    # A string seeds random.Random through SHA-512, so the house does not depend on the process.
    draft = _Draft(random.Random(f"household 1 {split} {number} {size}"), split == "unseen", size)
    return draft.house(task, tables.GOAL_KINDS[int(number) % len(tables.GOAL_KINDS)])


class _Draft:
    """A house in the making: one room at a time, then the objects."""

    def __init__(self, rng: random.Random, novel: bool, size: str) -> None:
        self.rng, self.novel, self.counts = rng, novel, SIZES[size]

    def house(self, task: str, kind: str) -> House:
        rng = self.rng
        first = rng.choice(_ROOMS_OF_GOAL.get(kind, tuple(ROOMS)))
        rooms = [first, *rng.sample([name for name in ROOMS if name != first], len(self.counts) - 1)]
        goal = self._goal(kind, first)
        spots: list[tuple[str, str]] = []
        for name, count in zip(rooms, self.counts, strict=True):
            needed = [tables.APPLIANCES[kind]] if kind in tables.APPLIANCES and name == first else []
            needed += [goal.receptacle] if goal.receptacle and name == first else []
            spots += [(name, spot) for spot in self._kinds_of_room(name, count, needed)]
        receptacles = tuple(
            _receptacle(spot, name, 1 + [s for _, s in spots[:i]].count(spot)) for i, (name, spot) in enumerate(spots)
        )
        lamps = self._lamps(goal, receptacles)
        things, places = self._things(goal, rooms, receptacles, lamps)
        start = HouseState(NOWHERE, NOWHERE, 0, 0, places, (0,) * len(things))
        return House(task, self._instruction(goal), goal, receptacles, things, lamps, start)

    def _goal(self, kind: str, name: str) -> Goal:
        room = ROOMS[name]
        things = room.novel_objects if self.novel else room.objects
        if kind in tables.TREATMENTS:
            things = tuple(thing for thing in things if kind in tables.treatments(thing))
        spots = room.novel_receptacles if self.novel else room.receptacles
        spots = tuple(spot for spot in spots if spot != tables.APPLIANCES.get(kind))
        return Goal(kind, self.rng.choice(things), "" if kind == tables.LOOK else self.rng.choice(spots))

    def _kinds_of_room(self, name: str, count: int, needed: list[str]) -> list[str]:
        room = ROOMS[name]
        if self.novel and not needed:
            needed = [self.rng.choice([s for s in room.novel_receptacles if not tables.openable(s)])]
        others = [spot for spot in room.receptacles if spot not in needed]
        kinds = needed + self.rng.sample(others, count - len(needed))
        self.rng.shuffle(kinds)
        return kinds

    def _things(
        self, goal: Goal, rooms: list[str], receptacles: tuple[Receptacle, ...], lamps: tuple[int, ...]
    ) -> tuple[tuple[Thing, ...], tuple[int, ...]]:
        rng = self.rng
        pool = {kind for name in rooms for kind in ROOMS[name].objects}
        if self.novel:
            pool |= {kind for name in rooms for kind in ROOMS[name].novel_objects}
        others = sorted(pool - {goal.thing})
        kinds = [goal.thing] * (2 if goal.kind == tables.TWO else 1)
        kinds += rng.choices(others, k=round(_DISTRACTORS_PER_RECEPTACLE * len(receptacles)))
        rng.shuffle(kinds)
        # Where the goal would be met, or nearly so, from the start.
        near = set(lamps) if goal.kind == tables.LOOK else set()
        apart = [i for i, spot in enumerate(receptacles) if spot.kind != goal.receptacle and i not in near]
        places = tuple(rng.choice(apart) if kind == goal.thing else rng.randrange(len(receptacles)) for kind in kinds)
        things = tuple(
            Thing(f"{kind} {1 + kinds[:i].count(kind)}", kind, tables.treatments(kind)) for i, kind in enumerate(kinds)
        )
        return things, places

    def _lamps(self, goal: Goal, receptacles: tuple[Receptacle, ...]) -> tuple[int, ...]:
        tops = [i for i, spot in enumerate(receptacles) if ROOMS[spot.room].lamps and spot.preposition == "on"]
        if self.novel:
            tops = [i for i in tops if receptacles[i].kind in ROOMS[receptacles[i].room].novel_receptacles]
        if not tops or (goal.kind != tables.LOOK and self.rng.random() < 0.5):
            return ()
        return (self.rng.choice(tops),)

    def _instruction(self, goal: Goal) -> str:
        table = tables.NOVEL_INSTRUCTIONS if self.novel else tables.INSTRUCTIONS
        spot = goal.receptacle
        return self.rng.choice(table[goal.kind]).format(
            a=tables.article(goal.thing),
            o=goal.thing,
            p=tables.preposition(spot) if spot else "",
            b=tables.article(spot) if spot else "",
            r=spot,
        )


def _receptacle(kind: str, room: str, number: int) -> Receptacle:
    treatment = next((verb for verb, appliance in tables.APPLIANCES.items() if appliance == kind), None)
    name = f"{kind} {number}"
    return Receptacle(name, kind, room, tables.openable(kind), tables.preposition(kind), treatment)
