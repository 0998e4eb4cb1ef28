"""Questions about what was read, whose answers are in the text."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from worlds import World

from verl_ee.prompts.state import State


@dataclass(frozen=True)
class Reading:
    """Something that was read: a world, and the state that an agent in it sees."""

    world: World
    state: State

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that the state lists."""
        return self.state.admissible_actions or ()

    @property
    def done(self) -> list[str]:
        """Actions that the state shows as taken."""
        return [turn.action for turn in self.state.history]

    def shown(self) -> dict[str, str]:
        """Return the place of each thing, as far as the text shows both."""
        text = " ".join([*(turn.observation for turn in self.state.history), self.state.observation])
        return {thing: place for thing, place in self.world.seen.items() if thing in text and place in text}


Asked = tuple[str, str] | None


def _task(read: Reading, rng: random.Random) -> Asked:
    return "What is the task?", read.state.task


def _observation(read: Reading, rng: random.Random) -> Asked:
    return "What do you see now?", read.state.observation


def _last(read: Reading, rng: random.Random) -> Asked:
    return ("What did you do last?", read.done[-1]) if read.done else None


def _was_done(read: Reading, rng: random.Random) -> Asked:
    if not read.done or not read.actions:
        return None
    action = rng.choice(read.done if rng.random() < 0.5 else read.actions)
    return f"Did you {action}?", "yes" if action in read.done else "no"


def _new_action(read: Reading, rng: random.Random) -> Asked:
    new = [action for action in read.actions if action not in read.done]
    return ("Name an action that you did not take.", rng.choice(new)) if new and read.done else None


def _again(read: Reading, rng: random.Random) -> Asked:
    old = [action for action in read.actions if action in read.done]
    return ("Name an action that you could take again.", rng.choice(old)) if old else None


def _where(read: Reading, rng: random.Random) -> Asked:
    shown = read.shown()
    if not shown:
        return None
    thing = rng.choice(sorted(shown))
    return f"Where was {thing}?", shown[thing]


def _what_there(read: Reading, rng: random.Random) -> Asked:
    shown = read.shown()
    if not shown:
        return None
    thing = rng.choice(sorted(shown))
    return f"Name something at {shown[thing]}.", thing


def _in_task(read: Reading, rng: random.Random) -> Asked:
    names = [*read.world.places, *read.world.things]
    near = [name for name in names if _kind(name) in read.state.task]
    name = rng.choice(near if near and rng.random() < 0.5 else names)
    return f"Does the task name {_kind(name)}?", "yes" if _kind(name) in read.state.task else "no"


def _action_of_task(read: Reading, rng: random.Random) -> Asked:
    names = [name for name in (*read.world.places, *read.world.things) if _kind(name) in read.state.task]
    found = [action for action in read.actions if any(name in action for name in names)]
    return ("Which action fits the task?", rng.choice(found)) if found else None


def _action_with(read: Reading, rng: random.Random) -> Asked:
    if not read.actions:
        return None
    action = rng.choice(read.actions)
    part = rng.choice((action.split()[0], " ".join(action.split()[-2:])))
    found = [other for other in read.actions if part in other]
    return f"Which action has {part} in it?", rng.choice(found)


def _kind(name: str) -> str:
    return name.removeprefix("the ").rpartition(" ")[0] or name


QUESTIONS: tuple[Callable[[Reading, random.Random], Asked], ...] = (
    *(_task, _observation, _last, _was_done, _new_action, _new_action, _again),
    *(_where, _where, _what_there, _in_task, _action_of_task, _action_of_task, _action_with),
)
