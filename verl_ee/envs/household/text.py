"""The wording of the household: one short text for each thing that can happen."""

from __future__ import annotations

from itertools import groupby

from verl_ee.envs.household.world import CONDITIONS, NOWHERE, Command, House, HouseState, accessible

IMPOSSIBLE = "That is not possible."
_CONDITION_WORDS = {"clean": "clean", "heat": "hot", "cool": "cold"}


def outcome(house: House, state: HouseState, command: Command) -> str:
    """Return the observation after `command`, given the state that it led to."""
    verb, which = command
    if verb in ("go", "examine place"):
        return _place(house, state)
    if verb == "open":
        return f"You open {house.receptacles[which].name}. {_contents(house, state)}"
    if verb == "close":
        return f"You close {house.receptacles[which].name}."
    if verb == "switch":
        return f"lamp {which + 1} is on."
    if verb == "put":
        spot = house.receptacles[state.place]
        return f"{house.things[which].name} is {spot.preposition} {spot.name}."
    if verb in CONDITIONS:
        return f"{house.things[which].name} is {_CONDITION_WORDS[verb]}."
    if verb == "examine thing":
        return _thing(house, state, which)
    return overview(house) if verb == "look" else _hands(house, state)


def overview(house: House) -> str:
    """Return the rooms and their receptacles; this is also the first observation."""
    parts = []
    for room, spots in groupby(house.receptacles, key=lambda spot: spot.room):
        parts.append(f"The {room} has {', '.join(spot.name for spot in spots)}.")
    return " ".join(parts)


def _place(house: House, state: HouseState) -> str:
    spot = house.receptacles[state.place]
    if not accessible(house, state, state.place):
        return f"{spot.name} is closed."
    return f"{spot.name} is open. {_contents(house, state)}" if spot.openable else _contents(house, state)


def _contents(house: House, state: HouseState) -> str:
    spot = house.receptacles[state.place]
    names = [thing.name for thing, place in zip(house.things, state.places, strict=True) if place == state.place]
    lamps = [i for i, place in enumerate(house.lamps) if place == state.place]
    names += [f"lamp {i + 1}" for i in lamps]
    start = f"{spot.preposition.capitalize()} {spot.name} you see "
    lit = "".join(f" lamp {i + 1} is on." for i in lamps if state.lit >> i & 1)
    return f"{start}{', '.join(names) or 'nothing'}.{lit}"


def _thing(house: House, state: HouseState, which: int) -> str:
    words = [word for verb, word in _CONDITION_WORDS.items() if state.conditions[which] & CONDITIONS[verb]]
    return f"{house.things[which].name} is {' and '.join(words) or 'not clean, not hot and not cold'}."


def _hands(house: House, state: HouseState) -> str:
    return f"You hold {'nothing' if state.in_hand == NOWHERE else house.things[state.in_hand].name}."
