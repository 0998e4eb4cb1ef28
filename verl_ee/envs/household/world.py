"""The rules of the household: what a state is, which actions it allows, what they change, when a goal is met."""

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
    """A place for objects; `treatment` is what can be done to an object here, or None."""

    name: str
    kind: str
    room: str
    openable: bool
    preposition: str
    treatment: str | None


@dataclass(frozen=True)
class Thing:
    """An object that can be carried, and what can be done to it."""

    name: str
    kind: str
    treatments: frozenset[str]


@dataclass(frozen=True)
class Goal:
    """What is asked for; `receptacle` is empty for a look under a lamp."""

    kind: str
    thing: str
    receptacle: str


class HouseState(NamedTuple):
    """All that changes.

    Attributes:
        place: index of the receptacle the agent stands at, or NOWHERE.
        held: index of the object in hand, or NOWHERE.
        opened: bit mask over receptacles.
        lit: bit mask over lamps.
        places: per object, index of its receptacle, or HELD.
        conditions: per object, bit mask of CONDITIONS.
    """

    place: int
    held: int
    opened: int
    lit: int
    places: tuple[int, ...]
    conditions: tuple[int, ...]


class Command(NamedTuple):
    """An action taken apart: a verb, and which receptacle, object or lamp (by index) it is about."""

    verb: str
    which: int = NOWHERE


@dataclass(frozen=True)
class House:
    """All that does not change; `lamps` are the receptacles that lamp 1, lamp 2... stand on."""

    task: str
    instruction: str
    goal: Goal
    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    lamps: tuple[int, ...]
    start: HouseState


def accessible(house: House, state: HouseState, place: int) -> bool:
    """Return whether one can see into, take from and put to a receptacle once there."""
    return not house.receptacles[place].openable or bool(state.opened >> place & 1)


def commands(house: House, state: HouseState) -> dict[str, Command]:
    """Return every possible action of `state`, by its text, in the order in which they are listed."""
    here, held = state.place, state.held
    found = {f"go to {r.name}": Command("go", i) for i, r in enumerate(house.receptacles) if i != here}
    if here != NOWHERE:
        _commands_here(house, state, house.receptacles[here], found)
        found[f"examine {house.receptacles[here].name}"] = Command("examine place", here)
    if held != NOWHERE:
        found[f"examine {house.things[held].name}"] = Command("examine thing", held)
    found["inventory"] = Command("inventory")
    found["look"] = Command("look")
    return found


def _commands_here(house: House, state: HouseState, spot: Receptacle, found: dict[str, Command]) -> None:
    here, held = state.place, state.held
    inside = accessible(house, state, here)
    if spot.openable:
        verb = "close" if inside else "open"
        found[f"{verb} {spot.name}"] = Command(verb, here)
    if held != NOWHERE:
        thing = house.things[held]
        if inside:
            found[f"put {thing.name} {spot.preposition} {spot.name}"] = Command("put", held)
        if spot.treatment in thing.treatments:
            found[f"{spot.treatment} {thing.name} with {spot.name}"] = Command(str(spot.treatment), held)
    elif inside:
        for i, place in enumerate(state.places):
            if place == here:
                found[f"take {house.things[i].name} from {spot.name}"] = Command("take", i)
    for i, place in enumerate(house.lamps):
        if place == here and not state.lit >> i & 1:
            found[f"switch on lamp {i + 1}"] = Command("switch", i)


def advance(state: HouseState, command: Command) -> HouseState:
    """Return the state after a possible `command`; one that only looks leaves it as it is."""
    verb, which = command
    if verb == "go":
        return state._replace(place=which)
    if verb in ("open", "close"):
        return state._replace(opened=state.opened ^ 1 << which)
    if verb == "take":
        return state._replace(held=which, places=_changed(state.places, which, HELD))
    if verb == "put":
        return state._replace(held=NOWHERE, places=_changed(state.places, which, state.place))
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
        return lit and state.held != NOWHERE and fits(house, state, state.held)
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
    that condition; and for two objects, they are together. Of several objects of the kind the best count.
    """
    goal = house.goal
    kind = [index for index, thing in enumerate(house.things) if thing.kind == goal.thing]
    if goal.kind == tables.LOOK:
        lit = any(place == state.place and state.lit >> i & 1 for i, place in enumerate(house.lamps))
        return ((state.held in kind) + lit) / 2
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
