"""Generated text for the tiny base model: random walks through houses, copying, and questions about what was read.

A pre-trained model knows the words, keeps to the chat format and can find something in its prompt. That is all this
text can teach: its actions are drawn at random, it holds no action of an expert, and a walk ends before its task is
solved. Words of the split `unseen` occur, as they would in the pre-training of a real model; the houses that
evaluation uses do not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from verl_ee.config import PromptConfig
from verl_ee.envs import make
from verl_ee.prompts import Message, TextFormat
from verl_ee.prompts.state import EpisodeHistory, State

FIRST_TASK = 5_000
"""Houses below this number are left to experts, GRPO and evaluation."""
FORM = TextFormat(PromptConfig(system="You act in a text world. Answer with one action.", instruction=""))
"""The prompt of the policy, which recipes/household/run.sh keeps to."""
READER = "You answer a question about a text."
Sample = tuple[list[Message], str]
Question = Callable[[State, random.Random], tuple[str, str] | None]


def samples(seed: int) -> Iterator[Sample]:
    """Yield (messages, response) for ever."""
    rng = random.Random(seed)
    envs = [
        make("verl_ee/Household-v0", {"size": size, "max_steps": 40}) for size in ("small", "small", "small", "medium")
    ]
    while True:
        yield _sample(random_state(rng.choice(envs), rng), rng)


def random_state(env: object, rng: random.Random) -> State:
    """Return the state after a random walk of 0 to 14 steps; half of the steps go somewhere or open something."""
    unwrapped = env.unwrapped  # type: ignore[attr-defined]
    while True:
        task = f"{rng.choice(('train', 'train', 'seen', 'unseen'))}/{rng.randrange(FIRST_TASK, 10_000)}"
        observation, info = unwrapped.reset(options={"task": task})
        episode = EpisodeHistory(info["task"], 8)
        for _ in range(rng.randrange(15)):
            actions = list(info["admissible_actions"])
            moving = [a for a in actions if a.startswith(("go to", "open", "take"))]
            action = rng.choice(moving if moving and rng.random() < 0.6 else actions)
            episode.act(episode.state(observation, actions), action)
            observation, _, done, _, info = unwrapped.step(action)
            if done:
                break
        else:
            return episode.state(observation, info["admissible_actions"])


def _sample(state: State, rng: random.Random) -> Sample:
    draw = rng.random()
    if draw < 0.45:
        return FORM.policy_prompt(state), FORM.response(rng.choice(state.admissible_actions or ("look",)))
    if draw < 0.5 and state.history:
        last = state.history[-1]
        before = State(state.task, state.history[:-1], last.observation, None)
        return FORM.world_model_prompt(before, last.action), FORM.outcome(state.observation)
    if draw < 0.55:
        return _ask("Say it again: " + state.observation, state.observation)
    for _ in range(20):
        found = rng.choice(QUESTIONS)(state, rng)
        if found is not None:
            question, answer = found
            text = FORM.policy_prompt(state)[1]["content"]
            return _ask(f"{text}\nQuestion: {question}", f"Answer: {answer}")
    return _ask("Say it again: " + state.task, state.task)


def _ask(content: str, answer: str) -> Sample:
    return [{"role": "system", "content": READER}, {"role": "user", "content": content}], answer


def _places(state: State) -> list[str]:
    """Return the places that the list of actions lets one go to."""
    return [a.removeprefix("go to ") for a in state.admissible_actions or () if a.startswith("go to ")]


def _visited(state: State) -> list[str]:
    return [turn.action.removeprefix("go to ") for turn in state.history if turn.action.startswith("go to ")]


def _which_visited(state: State, rng: random.Random) -> tuple[str, str] | None:
    places = _places(state)
    if not places or not state.history:
        return None
    place = rng.choice(places)
    return f"Did you go to {place}?", "yes" if place in _visited(state) else "no"


def _new_place(state: State, rng: random.Random) -> tuple[str, str] | None:
    new = [place for place in _places(state) if place not in _visited(state)]
    return ("Name a place where you did not go.", rng.choice(new)) if new else None


def _last_action(state: State, rng: random.Random) -> tuple[str, str] | None:
    return ("What did you do last?", state.history[-1].action) if state.history else None


def _observations(state: State) -> list[str]:
    return [turn.observation for turn in state.history] + [state.observation]


def _where(state: State, rng: random.Random) -> tuple[str, str] | None:
    """Ask where a thing was seen last, from the sentences that list things."""
    seen: dict[str, str] = {}
    for observation in _observations(state):
        for place, things in re.findall(r"(?:On|In) ([a-z ]+\d+) you see ([^.]+)\.", observation):
            for thing in things.split(", "):
                if thing != "nothing":
                    seen[thing] = place
    if not seen:
        return None
    thing = rng.choice(sorted(seen))
    return f"Where did you see {thing}?", seen[thing]


def _what_there(state: State, rng: random.Random) -> tuple[str, str] | None:
    seen = {}
    for observation in _observations(state):
        for place, things in re.findall(r"(?:On|In) ([a-z ]+\d+) you see ([^.]+)\.", observation):
            seen[place] = things
    if not seen:
        return None
    place = rng.choice(sorted(seen))
    return f"What did you see at {place}?", seen[place]


def _task(state: State, rng: random.Random) -> tuple[str, str] | None:
    return "What is the task?", state.task


def _in_task(state: State, rng: random.Random) -> tuple[str, str] | None:
    """Ask whether a thing or place at hand is of a kind that the task names."""
    names = [a.split(" ", 1)[1] for a in state.admissible_actions or () if a.startswith("examine ")] + _places(state)
    if not names:
        return None
    name = rng.choice(names)
    kind = re.sub(r" \d+$", "", name)
    return f"Does the task name {name}?", "yes" if re.search(rf"\b{kind}s?\b", state.task) else "no"


def _possible(state: State, rng: random.Random) -> tuple[str, str] | None:
    verbs = ("take", "put", "open", "close", "clean", "heat", "cool", "switch")
    verb = rng.choice(verbs)
    found = [a for a in state.admissible_actions or () if a.startswith(verb + " ")]
    return f"Which action starts with {verb}?", rng.choice(found) if found else "nothing"


QUESTIONS: tuple[Question, ...] = (
    _which_visited,
    _new_place,
    _new_place,
    _last_action,
    _where,
    _where,
    _what_there,
    _task,
    _in_task,
    _in_task,
    _possible,
)
