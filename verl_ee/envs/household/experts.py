"""Two experts of the household: one knows where everything is, the other has to search.

Both follow the same rule (`_next`); they differ in what they know of the house.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from verl_ee.envs.household import tables
from verl_ee.envs.household.world import (
    CONDITIONS,
    NOWHERE,
    Command,
    House,
    HouseState,
    accessible,
    advance,
    commands,
    fits,
    solved,
)
from verl_ee.errors import EnvError, did_you_mean

KINDS = ("search", "shortest")
_LIMIT = 500
"""Actions, far above what any house needs: an expert that takes more is caught in a circle."""


@dataclass
class _Knowledge:
    """The knowledge that an expert acts on.

    Attributes:
        unknown: receptacles whose contents it has not seen, in the order in which it would visit them.
        things: objects of the goal's kind that it may fetch.
        lamps: lamps that it may use.
        target: the receptacle that the objects go to, or NOWHERE for a look under a lamp.
    """

    unknown: list[int]
    things: set[int]
    lamps: set[int]
    target: int


def solve(house: House, kind: str) -> list[str]:
    """Return the actions of an expert, from the start of `house` until the goal is met.

    Args:
        house: the house.
        kind: "search" (sees what the agent sees, and visits the receptacles in the listed order) or "shortest"
            (sees all, and takes as few actions as possible).

    Raises:
        EnvError: if there is no such expert.
    """
    if kind == "search":
        return _rollout(house, _Knowledge(list(range(len(house.receptacles))), set(), set(), _targets(house)[0]))
    if kind == "shortest":
        return min((_rollout(house, knowledge) for knowledge in _choices(house)), key=len)
    raise EnvError(f"Household has no expert {kind!r}. {did_you_mean(kind, KINDS)}")


def _targets(house: House) -> list[int]:
    return [i for i, r in enumerate(house.receptacles) if r.kind == house.goal.receptacle] or [NOWHERE]


def _choices(house: House) -> Iterator[_Knowledge]:
    wanted = [i for i, thing in enumerate(house.things) if thing.kind == house.goal.thing]
    lamps = range(len(house.lamps)) if house.goal.kind == tables.LOOK else (NOWHERE,)
    pairs = [{a, b} for a, b in product(wanted, wanted) if a < b]
    fetched = pairs if house.goal.kind == tables.TWO else [{thing} for thing in wanted]
    for things, lamp, target in product(fetched, lamps, _targets(house)):
        yield _Knowledge([], set(things), {lamp}, target)


def _rollout(house: House, knowledge: _Knowledge) -> list[str]:
    state = house.start
    actions: list[str] = []
    while not solved(house, state) and len(actions) < _LIMIT:
        _see(house, state, knowledge)
        wanted = _next(house, state, knowledge)
        actions.append(next(text for text, command in commands(house, state).items() if command == wanted))
        state = advance(state, wanted)
    return actions


def _see(house: House, state: HouseState, knowledge: _Knowledge) -> None:
    here = state.place
    if here not in knowledge.unknown or not accessible(house, state, here):
        return
    knowledge.unknown.remove(here)
    kind = house.goal.thing
    knowledge.things |= {i for i, place in enumerate(state.places) if place == here and house.things[i].kind == kind}
    knowledge.lamps |= {i for i, place in enumerate(house.lamps) if place == here}


def _next(house: House, state: HouseState, knowledge: _Knowledge) -> Command:
    if state.in_hand == NOWHERE:
        away = [i for i in sorted(knowledge.things) if state.places[i] != knowledge.target]
        here = [i for i in away if state.places[i] == state.place]
        if here or away:
            thing = (here or away)[0]
            return _at(house, state, state.places[thing], Command("take", thing))
        return _search(house, state, knowledge)
    if house.goal.kind == tables.LOOK:
        if knowledge.lamps:
            lamp = min(knowledge.lamps)
            return _to(state, house.lamps[lamp]) or Command("switch", lamp)
        return _search(house, state, knowledge)
    if house.goal.kind in CONDITIONS and not fits(house, state, state.in_hand):
        appliance = next(i for i, r in enumerate(house.receptacles) if r.treatment == house.goal.kind)
        return _to(state, appliance) or Command(house.goal.kind, state.in_hand)
    return _at(house, state, knowledge.target, Command("put", state.in_hand))


def _search(house: House, state: HouseState, knowledge: _Knowledge) -> Command:
    if state.place in knowledge.unknown:
        return Command("open", state.place)
    return Command("go", knowledge.unknown[0])


def _to(state: HouseState, place: int) -> Command | None:
    return None if state.place == place else Command("go", place)


def _at(house: House, state: HouseState, place: int, command: Command) -> Command:
    if state.place != place:
        return Command("go", place)
    return command if accessible(house, state, place) else Command("open", place)
