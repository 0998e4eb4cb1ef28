"""The words of the household: kinds of receptacles and objects, rooms, instructions.

`NOVEL` entries occur in the split `unseen` only. They are new combinations of words that all occur in `train`, so a
word-level model has met each word, but neither these kinds nor these sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

PUT, CLEAN, HEAT, COOL, TWO, LOOK = "put", "clean", "heat", "cool", "two", "look"
GOAL_KINDS = (PUT, CLEAN, HEAT, COOL, TWO, LOOK)
TREATMENTS = (CLEAN, HEAT, COOL)
APPLIANCES = {CLEAN: "sink", HEAT: "microwave", COOL: "fridge"}


@dataclass(frozen=True)
class Room:
    """The kinds of things that a room may contain.

    Attributes:
        receptacles: kinds of receptacles, appliances included.
        objects: kinds of objects.
        novel_receptacles: kinds of receptacles of the split `unseen`.
        novel_objects: kinds of objects of the split `unseen`.
        lamps: whether a lamp may stand here.
    """

    receptacles: tuple[str, ...]
    objects: tuple[str, ...]
    novel_receptacles: tuple[str, ...]
    novel_objects: tuple[str, ...]
    lamps: bool


ROOMS = {
    "kitchen": Room(
        ("fridge", "microwave", "sink", "table", "counter", "cabinet", "drawer", "shelf", "basket"),
        ("cup", "bowl", "plate", "pan", "pot", "knife", "spoon", "apple", "potato", "tomato", "egg", "bread", "soup",
         "tea cup", "bread knife"),
        ("kitchen cabinet", "kitchen table", "bread basket", "plate shelf"),
        ("tea pot", "egg cup", "tea spoon", "paper plate", "bread plate", "tomato soup", "potato bread", "apple bowl"),
        lamps=False,
    ),
    "bathroom": Room(
        ("sink", "cabinet", "shelf", "basket", "drawer", "stool"),
        ("soap", "towel", "cloth", "cup", "bottle", "paper", "hand towel"),
        ("towel cabinet", "towel shelf", "soap drawer", "paper basket"),
        ("hand soap", "soap bottle", "paper towel", "paper cup", "hand cloth"),
        lamps=False,
    ),
    "bedroom": Room(
        ("bed", "desk", "drawer", "chest", "side table", "shelf", "stool"),
        ("book", "pen", "key", "watch", "phone", "pillow", "cloth", "box", "bag"),
        ("bed table", "side drawer", "bed chest", "side shelf"),
        ("key box", "book bag", "pillow bag", "watch box", "bed cloth"),
        lamps=True,
    ),
    "office": Room(
        ("desk", "drawer", "cabinet", "shelf", "table", "book shelf", "chest"),
        ("book", "pen", "key", "phone", "paper", "box", "cup", "paper bag"),
        ("desk drawer", "paper cabinet", "side desk", "key chest"),
        ("pen box", "phone book", "paper book", "hand phone", "pen cup"),
        lamps=True,
    ),
}  # fmt: skip

OPENABLE = frozenset({"fridge", "microwave", "cabinet", "drawer", "chest"})
HOLLOW = OPENABLE | {"sink", "basket"}

WASHABLE = frozenset(
    {"cup", "bowl", "plate", "pan", "pot", "knife", "spoon", "apple", "potato", "tomato", "soap", "towel", "cloth",
     "bottle"}
)  # fmt: skip
EDIBLE = frozenset({"cup", "bowl", "plate", "pot", "apple", "potato", "tomato", "egg", "bread", "soup"})

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    PUT: ("put {a} {o} {p} {b} {r}", "move {a} {o} to {b} {r}", "find {a} {o} and put it {p} {b} {r}"),
    CLEAN: (
        "clean {a} {o} and put it {p} {b} {r}",
        "put a clean {o} {p} {b} {r}",
        "there must be a clean {o} {p} {b} {r}",
    ),
    HEAT: ("heat {a} {o} and put it {p} {b} {r}", "put a hot {o} {p} {b} {r}", "move a hot {o} to {b} {r}"),
    COOL: ("cool {a} {o} and put it {p} {b} {r}", "put a cold {o} {p} {b} {r}", "take a cold {o} to {b} {r}"),
    TWO: (
        "put {a} {o} and another {o} {p} {b} {r}",
        "move {a} {o} and another {o} to {b} {r}",
        "find {a} {o} and another {o} and put them {p} {b} {r}",
    ),
    LOOK: ("look at {a} {o} under a lamp", "find {a} {o} and look at it under a lamp", "hold {a} {o} under a lamp"),
}
NOVEL_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    PUT: ("take {a} {o} to {b} {r}", "there must be {a} {o} {p} {b} {r}"),
    CLEAN: ("find {a} {o}, clean it and move it to {b} {r}", "take a clean {o} to {b} {r}"),
    HEAT: ("find {a} {o}, heat it and take it to {b} {r}", "there must be a hot {o} {p} {b} {r}"),
    COOL: ("find {a} {o}, cool it and move it to {b} {r}", "there must be a cold {o} {p} {b} {r}"),
    TWO: ("take {a} {o} and another {o} to {b} {r}", "there must be {a} {o} and another {o} {p} {b} {r}"),
    LOOK: ("take {a} {o} to a lamp and look at it", "switch on a lamp and look at {a} {o}"),
}


def openable(kind: str) -> bool:
    """Return whether a receptacle of this kind can be opened and closed; the last word of the kind decides."""
    return kind.split()[-1] in OPENABLE


def preposition(kind: str) -> str:
    """Return "in" or "on", whichever goes with a receptacle of this kind."""
    return "in" if kind.split()[-1] in HOLLOW else "on"


def treatments(kind: str) -> frozenset[str]:
    """Return which of "clean", "heat" and "cool" can be done to an object of this kind."""
    word = kind.split()[-1]
    return frozenset({CLEAN} if word in WASHABLE else ()) | (frozenset({HEAT, COOL}) if word in EDIBLE else frozenset())


def article(name: str) -> str:
    """Return "a" or "an", whichever goes before `name`."""
    return "an" if name[0] in "aeiou" else "a"
