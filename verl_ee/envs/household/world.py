"""The rules of the household: its states, the actions that a state allows, their effects, and when a goal is met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from verl_ee.envs.household import tables

NOWHERE = -1
"""Place of an agent that stands at no receptacle, and index of the object in empty hands."""
HELD = -1
"""Place of the object that the agent holds."""
CONDITIONS = {tables.CLEAN: 1, tables.HEAT: 2, tables.COOL: 4}
"""Bit of an object's condition that a treatment sets."""


@dataclass(frozen=True)
class Receptacle:
    """A place for objects.

    Attributes:
        name: the kind and a number.
        kind: the kind.
        room: name of the room.
        openable: whether it can be opened and closed.
        preposition: "in" or "on".
        treatment: the treatment that an object can get here, or None.
    """

    name: str
    kind: str
    room: str
    openable: bool
    preposition: str
    treatment: str | None


@dataclass(frozen=True)
class Thing:
    """An object that can be carried, and the treatments that it can get."""

    name: str
    kind: str
    treatments: frozenset[str]


@dataclass(frozen=True)
class Goal:
    """The goal of a task; `receptacle` is empty for a look under a lamp."""

    kind: str
    thing: str
    receptacle: str


class HouseState(NamedTuple):
    """Everything in a house that actions change.

    Attributes:
        place: index of the receptacle the agent stands at, or NOWHERE.
        in_hand: index of the object in hand, or NOWHERE.
        opened: bit mask over receptacles.
        lit: bit mask over lamps.
        places: per object, index of its receptacle, or HELD.
        conditions: per object, bit mask of CONDITIONS.
    """

    place: int
    in_hand: int
    opened: int
    lit: int
    places: tuple[int, ...]
    conditions: tuple[int, ...]


class Command(NamedTuple):
    """An action taken apart: a verb, and the index of the receptacle, object or lamp that it is about."""

    verb: str
    which: int = NOWHERE


@dataclass(frozen=True)
class House:
    """A house and its task, as far as no action changes them.

    Attributes:
        task: id of the task.
        instruction: the instruction that the agent is given.
        goal: what solves the task.
        receptacles: the receptacles, room by room.
        things: the objects.
        lamps: index of the receptacle that lamp 1, lamp 2... stands on.
        start: the state after a reset.
    """

    task: str
    instruction: str
    goal: Goal
    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    lamps: tuple[int, ...]
    start: HouseState


def accessible(house: House, state: HouseState, place: int) -> bool:
    """Return whether an agent at a receptacle can see into it, take from it and put something there."""
    return not house.receptacles[place].openable or bool(state.opened >> place & 1)


def commands(house: House, state: HouseState) -> dict[str, Command]:
    """Return every possible action of `state`, by its text, in the order in which they are listed."""
    here, in_hand = state.place, state.in_hand
    by_text = {f"go to {r.name}": Command("go", i) for i, r in enumerate(house.receptacles) if i != here}
    if here != NOWHERE:
        _commands_here(house, state, house.receptacles[here], by_text)
        by_text[f"examine {house.receptacles[here].name}"] = Command("examine place", here)
    if in_hand != NOWHERE:
        by_text[f"examine {house.things[in_hand].name}"] = Command("examine thing", in_hand)
    by_text["inventory"] = Command("inventory")
    by_text["look"] = Command("look")
    return by_text


def _commands_here(house: House, state: HouseState, spot: Receptacle, by_text: dict[str, Command]) -> None:
    here, in_hand = state.place, state.in_hand
    inside = accessible(house, state, here)
    if spot.openable:
        verb = "close" if inside else "open"
        by_text[f"{verb} {spot.name}"] = Command(verb, here)
    if in_hand != NOWHERE:
        thing = house.things[in_hand]
        if inside:
            by_text[f"put {thing.name} {spot.preposition} {spot.name}"] = Command("put", in_hand)
        if spot.treatment in thing.treatments:
            by_text[f"{spot.treatment} {thing.name} with {spot.name}"] = Command(str(spot.treatment), in_hand)
    elif inside:
        for i, place in enumerate(state.places):
            if place == here:
                by_text[f"take {house.things[i].name} from {spot.name}"] = Command("take", i)
    for i, place in enumerate(house.lamps):
        if place == here and not state.lit >> i & 1:
            by_text[f"switch on lamp {i + 1}"] = Command("switch", i)


def advance(state: HouseState, command: Command) -> HouseState:
    """Return the state after a possible `command`; one that only looks leaves it as it is."""
    verb, which = command
    if verb == "go":
        return state._replace(place=which)
    if verb in ("open", "close"):
        return state._replace(opened=state.opened ^ 1 << which)
    if verb == "take":
        return state._replace(in_hand=which, places=_changed(state.places, which, HELD))
    if verb == "put":
        return state._replace(in_hand=NOWHERE, places=_changed(state.places, which, state.place))
    if verb == "switch":
        return state._replace(lit=state.lit | 1 << which)
    if verb in CONDITIONS:
        kept = state.conditions[which] & CONDITIONS[tables.CLEAN]
        return state._replace(conditions=_changed(state.conditions, which, kept | CONDITIONS[verb]))
    return state


def fits(house: House, state: HouseState, thing: int) -> bool:
    """Return whether an object is of the goal's kind and in the condition that the goal asks for."""
    goal = house.goal
    needed = CONDITIONS.get(goal.kind, 0)
    return house.things[thing].kind == goal.thing and state.conditions[thing] & needed == needed


def solved(house: House, state: HouseState) -> bool:
    """Return whether the goal is met; two objects must be in one and the same receptacle."""
    goal = house.goal
    if goal.kind == tables.LOOK:
        lit = any(place == state.place and state.lit >> i & 1 for i, place in enumerate(house.lamps))
        return lit and state.in_hand != NOWHERE and fits(house, state, state.in_hand)
    there = [
        place
        for thing, place in enumerate(state.places)
        if place != HELD and house.receptacles[place].kind == goal.receptacle and fits(house, state, thing)
    ]
    return len(set(there)) < len(there) if goal.kind == tables.TWO else bool(there)


def progress(house: House, state: HouseState) -> float:
    """Return the share of the goal's conditions that hold, 1.0 only if it is met.

    For a look: the object is in hand, and a lamp is lit beside the agent. Else, for each object that is asked for: it
    is in hand or in a right receptacle, it is in the condition asked for (if any is), it is in a right receptacle in
    that condition; and for two objects, they are together. If there are several objects of the kind, the best count.
    """
    goal = house.goal
    kind = [index for index, thing in enumerate(house.things) if thing.kind == goal.thing]
    if goal.kind == tables.LOOK:
        lit = any(place == state.place and state.lit >> i & 1 for i, place in enumerate(house.lamps))
        return ((state.in_hand in kind) + lit) / 2
    treated = goal.kind in CONDITIONS
    scores = []
    for index in kind:
        place = state.places[index]
        right = place != HELD and house.receptacles[place].kind == goal.receptacle
        fit = fits(house, state, index)
        scores.append((right or place == HELD) + (treated and fit) + (right and fit))
    needed, each = (2, 2) if goal.kind == tables.TWO else (1, 2 + treated)
    together = int(goal.kind == tables.TWO)
    reached = sum(sorted(scores)[-needed:]) + (together and solved(house, state))
    return reached / (needed * each + together)


def _changed(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
