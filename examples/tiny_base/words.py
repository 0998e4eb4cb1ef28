"""Words of the generated worlds. Those of the household are among them, each as common as any other."""

from __future__ import annotations

import random

from verl_ee.envs.household import tables

_HOUSEHOLD = sorted(
    {
        word
        for room in tables.ROOMS.values()
        for kind in (*room.receptacles, *room.objects, *room.novel_receptacles, *room.novel_objects)
        for word in kind.split()
    }
    | {*tables.ROOMS, "lamp"}
)
_NOUNS = (
    "anchor arrow axe badge barrel bell bench blanket boat bolt brick bridge brush bucket cable camp candle card "
    "cart cave chain chair clock coat coin cork crate crown dock door engine farm feather fence flag flute forge "
    "fork garden gate gem glass glove hall hammer harbor hat hook horn inn island jar ladder lens letter lever "
    "lock map market mask mill mirror needle nest oven page parcel path pearl pier pipe pool rack ring road robe "
    "rope ruby sack saw scale screw shed shop sign spring stable stair stamp stone stove tent ticket tile torch "
    "tower tray tube tunnel valve vault wagon wall well wheel whistle window wire wood yard"
)
_ADJECTIVES = (
    "old new red blue green black white round flat heavy light long short dark bright dusty rusty wet dry broken "
    "clean hot cold small large open closed empty full"
)
_VERBS = (
    "go take put open close clean heat cool examine look move find hold switch walk run step travel head climb "
    "enter visit reach grab lift pull push press turn twist read check inspect drop place leave give bring carry "
    "lay set fill empty wash dry cut tie mix paint polish repair light bury unlock lock break bend fold shake "
    "ring hide cover wrap wear use touch taste smell feed call ask mark"
)
NOUNS = (*_HOUSEHOLD, *_NOUNS.split())
ADJECTIVES, VERBS = _ADJECTIVES.split(), _VERBS.split()
_ALL = tuple(dict.fromkeys((*NOUNS, *VERBS, *ADJECTIVES)))


def noun(rng: random.Random) -> str:
    """Return a noun, sometimes of two words."""
    return " ".join(rng.choices(NOUNS, k=2 if rng.random() < 0.25 else 1))


def different(rng: random.Random, count: int) -> list[str]:
    """Return different words of any kind."""
    return rng.sample(_ALL, count)


def names(rng: random.Random, count: int) -> list[str]:
    """Return different names of things, all in one style that is drawn anew."""
    style = rng.choice(("number", "number", "number", "number", "letter", "the", "dash", "bare"))
    kinds = [noun(rng) for _ in range(max(1, round(count * rng.uniform(0.35, 1.0))))]
    made: list[str] = []
    while len(made) < count:
        kind = rng.choice(kinds)
        same = 1 + sum(name.split(" #")[0] == kind for name in made)
        made.append(f"{kind} #{same}")
    return list(dict.fromkeys(_styled(rng, name, style) for name in made))


def _styled(rng: random.Random, name: str, style: str) -> str:
    kind, _, number = name.partition(" #")
    if style == "number":
        return f"{kind} {number}"
    if style == "letter":
        return f"{kind} {chr(64 + int(number))}"
    if style == "dash":
        return f"{kind}-{number}"
    described = f"{rng.choice(ADJECTIVES)} {kind}"
    return f"the {described}" if style == "the" else described
