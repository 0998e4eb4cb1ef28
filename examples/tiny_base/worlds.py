"""Worlds whose words, wording, lists and mechanics are all drawn anew.

Reading, copying and keeping to a form are the only constants. Nothing here is the household: its words occur, its
sentences and its transitions do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import words

_MOVE = ("{v} {p}", "{v} to {p}", "{v} to {p}", "{v} into {p}", "{v} over to {p}", "{p}: {v}")
_TAKE = ("{v} {t} from {p}", "{v} {t} from {p}", "{v} {t}", "{v} up {t}", "{v} {t} off {p}", "{p}: {v} {t}")
_DROP = ("{v} {t} in {p}", "{v} {t} on {p}", "{v} {t} on {p}", "{v} {t} at {p}", "{v} {t}", "{v} {t} into {p}")
_ACT = ("{v} {t} with {p}", "{v} {t} with {p}", "{v} {t}", "{v} {t} at {p}")
_TOGGLE = ("{v} {p}", "{v} {p}", "{v} the {p}", "{v} up {p}")
_PLAIN = ("{v}", "{v}", "{v} around", "{v} again", "inventory", "look", "wait")
_SEEN = (
    "{p}: {l}.", "At {p} there is {l}.", "You notice {l} by {p}.", "Here, {l}.", "{l} can be seen.", "[{p}] {l}",
    "You reach {p}. It has {l}.", "Now at {p} with {l}.", "Before you: {l}. This is {p}.",
)  # fmt: skip
_CHANGED = (
    "Done: {t} {s}.", "{t} becomes {s}.", "You did it, {t} is now {s}.", "OK ({t}: {s}).", "The {s} {t} is with you.",
    "{s}, that is {t}.",
)  # fmt: skip
_PLAN = (
    "There are {l}.", "Map: {l}.", "The {r} holds {l}.", "Around you are {l}.", "You are in the {r} with {l}.",
    "In the {r}: {l}.",
)  # fmt: skip
_TASK = (
    "{v} {a} {t} and {w} it {q} {b} {p}", "{v} {a} {t} {q} {b} {p}", "bring {t} to {p}", "there must be {t} {q} {p}",
    "{v} {a} {s} {t}", "make {t} {s}", "see {p}, then {v} {t}", "{w} two {t} {q} {b} {p}", "{v} {t}",
)  # fmt: skip


class World:
    """A world of places and things.

    Attributes:
        task: an instruction of this world; nothing ever solves it.
        places: names of places.
        things: names of things.
        calls: function and arguments of each possible action.
        seen: the place where each thing was seen last.
    """

    def __init__(self, rng: random.Random, size: int) -> None:
        """Draw a world with about `size` places."""
        self._rng = rng
        self.places = words.names(rng, max(2, size))
        named = words.names(rng, round(size * rng.uniform(0.6, 1.6)) + 2)
        self.things = [name for name in named if name not in self.places]
        self._verbs = rng.sample(words.VERBS, 8)
        self._form = {name: rng.choice(forms) for name, forms in _FORMS.items()}
        self._conditions = rng.sample(words.ADJECTIVES, 3)
        self._room = words.noun(rng)
        self._between = rng.choice((", ", ", ", "; ", " and ", " | "))
        wanted = words.noun(rng) if rng.random() < 0.5 else self._kind(self.things)
        self.task = self._wording("task", wanted, self._kind(self.places))
        self._where = {thing: rng.choice(self.places) for thing in self.things}
        self._shut = {place for place in self.places if rng.random() < self._rng.choice((0.0, 0.3, 0.6))}
        self._near = {place: self._neighbours(place) for place in self.places}
        self._here = ""
        self._most = rng.choice((1, 1, 1, 3))
        self._effects: dict[str, Callable[[], str]] = {}
        self.calls: dict[str, tuple[str, dict[str, str]]] = {}
        self.seen: dict[str, str] = {}

    def start(self) -> str:
        """Return the first observation."""
        return self._wording("plan", "", "", self._listed(self.places))

    def actions(self) -> list[str]:
        """Return the possible actions, in an order of this world's own."""
        here, held = self._here, self._held()
        effects: dict[str, Callable[[], str]] = {}
        self.calls = {}
        for place in self._near.get(here, self.places):
            effects[self._say("move", 0, place)] = lambda place=place: self._go(place)  # type: ignore[misc]
        if here and here in self._shut:
            effects[self._say("toggle", 1, here)] = self._open
        elif here:
            for thing in (t for t, place in self._where.items() if place == here and len(held) < self._most):
                effects[self._say("take", 2, here, thing)] = lambda thing=thing: self._take(thing)  # type: ignore[misc]
            for thing in held:
                effects[self._say("drop", 3, here, thing)] = lambda thing=thing: self._drop(thing)  # type: ignore[misc]
                for verb in (4, 5):
                    effects[self._say("act", verb, here, thing)] = lambda thing=thing: self._change(thing)  # type: ignore[misc]
        if here:
            effects[self._say("toggle", 6, here)] = lambda: self._seen()
        effects[self._say("plain", 7, here)] = lambda: self._seen() if here else self.start()
        self._effects = effects
        return list(effects)

    def step(self, action: str) -> str:
        """Return the observation after one of the possible actions."""
        return self._effects[action]()

    def _go(self, place: str) -> str:
        self._here = place
        return self._seen()

    def _open(self) -> str:
        self._shut.discard(self._here)
        return self._seen()

    def _take(self, thing: str) -> str:
        self._where[thing] = ""
        return self._wording("changed", thing, self._here)

    def _drop(self, thing: str) -> str:
        self._where[thing] = self._here
        return self._seen()

    def _change(self, thing: str) -> str:
        return self._wording("changed", thing, self._here)

    def _seen(self) -> str:
        things = [thing for thing, place in self._where.items() if place == self._here and place not in self._shut]
        self.seen.update(dict.fromkeys(things, self._here))
        return self._wording("seen", "", self._here, self._listed(things))

    def schemas(self) -> list[dict[str, object]]:
        """Return the functions of this world, in OpenAI form."""
        made = {}
        for form, verb in (("move", 0), ("toggle", 1), ("take", 2), ("drop", 3), ("act", 4), ("act", 5), ("toggle", 6)):
            action = self._say(form, verb, "", "")
            name, arguments = self.calls.pop(action)
            properties = {key: {"type": "string"} for key in arguments}
            parameters = {"type": "object", "properties": properties, "required": list(arguments)}
            made[name] = {"type": "function", "function": {"name": name, "description": form, "parameters": parameters}}
        self._rng.shuffle(schemas := list(made.values()))
        return schemas

    def _held(self) -> list[str]:
        return [thing for thing, place in self._where.items() if not place]

    def _neighbours(self, place: str) -> list[str]:
        others = [other for other in self.places if other != place]
        return others if self._rng.random() < 0.7 else self._rng.sample(others, (len(others) + 1) // 2)

    def _listed(self, names: Sequence[str]) -> str:
        return self._between.join(names) or self._rng.choice(("none", "no thing", "only dust"))

    def _kind(self, names: Sequence[str]) -> str:
        name = self._rng.choice(names)
        return name.rpartition(" ")[0] or name

    def _say(self, form: str, verb: int, place: str, thing: str = "") -> str:
        action = self._form[form].format(v=self._verbs[verb], p=place, t=thing)
        arguments = {"thing": thing, "place": place}
        named = {name: value for name, value in arguments.items() if f"{{{name[0]}}}" in self._form[form]}
        self.calls[action] = (self._verbs[verb].replace(" ", "_"), named)
        return action

    def _wording(self, form: str, thing: str, place: str, listed: str = "") -> str:
        rng = self._rng
        return self._form[form].format(
            t=thing, p=place, l=listed, s=rng.choice(self._conditions), r=self._room, a=rng.choice(("a", "an", "the")),
            b=rng.choice(("a", "an", "the")), q=rng.choice(("in", "on", "under", "by")), v=rng.choice(words.VERBS),
            w=rng.choice(words.VERBS),
        )  # fmt: skip


_FORMS = {
    "move": _MOVE, "take": _TAKE, "drop": _DROP, "act": _ACT, "toggle": _TOGGLE, "plain": _PLAIN, "seen": _SEEN,
    "changed": _CHANGED, "plan": _PLAN, "task": _TASK,
}  # fmt: skip
