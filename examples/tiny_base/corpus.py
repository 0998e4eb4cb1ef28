"""Generated text for the tiny base model: episodes of generated worlds in every prompt format, and questions.

A pre-trained model knows the words, keeps to a form and can find something in its prompt. That is all this text can
teach: its actions are drawn at random from those that are listed, and its worlds are drawn anew for every sample. In
half of the samples the last state is one of the household, behind a past in another world. So the model knows its
lists, and has not seen its transitions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import words
from houses import house
from questions import QUESTIONS, Reading
from worlds import World

from verl_ee.config import PromptConfig
from verl_ee.prompts import PromptFormat
from verl_ee.prompts.formats import prompt_format
from verl_ee.prompts.state import EpisodeHistory, State

_SYSTEMS = (None, None, None, "You act in a text world. Answer with one action.", "You are an agent.", "")
_INSTRUCTIONS = (None, None, None, "", "", "Answer with one action.", "Your action?")
_LISTS = (
    "{% for a in actions %}- {{ a }}\n{% endfor %}",
    "{% for a in actions %}{{ loop.index }}. {{ a }}\n{% endfor %}",
    "Possible: {{ actions | join('; ') }}\n",
    "{{ actions | join(', ') }}\n",
)
_PAST = "{% for t in history %}{{ t.observation }}\n{{ t.action }}\n{% endfor %}"
_THOUGHTS = (
    "I could {a}.", "I will {a}.", "Next I {a}.", "The task is: {k}.", "I want to {k}, so I {a}.", "Here I see: {o}",
    "Why not {a}?",
)  # fmt: skip
_MORE = ("Another.", "Name one more.", "Which else?")
_READER = "You answer a question about a text."


@dataclass(frozen=True)
class Sample:
    """A conversation; the model learns what the assistant says in it.

    Attributes:
        messages: chat messages.
        tools: schemas of functions that it may call.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, object]] | None = None


def samples(seed: int, household: bool = False) -> Iterator[Sample]:
    """Yield samples for ever; with `household`, most of them are many answers to one state of the household."""
    rng = random.Random(seed)
    kinds, weights = zip(*(_KINDS | (_AT_HOME if household else {})).items(), strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](rng)


def passages(seed: int, most: int) -> Iterator[Sample]:
    """Yield words in any order, fewer than `most` of them, and passages of these that begin anywhere, for ever.

    Words that are said again from the beginning would teach to count. A model that goes on from any word as the text
    does can read lists later.
    """
    rng = random.Random(seed)
    while True:
        said = words.different(rng, rng.randrange(6, most))
        messages: list[dict[str, Any]] = [{"role": "user", "content": " " + " ".join(said)}]
        for _ in range(6):
            at = rng.randrange(len(said) - 2)
            messages.append(_assistant(" " + " ".join(said[at : at + rng.randrange(2, 9)])))
            messages.append({"role": "user", "content": rng.choice(_MORE)})
        yield Sample(messages[:-1])


def _world(rng: random.Random) -> World:
    return World(rng, rng.choice((3, 4, 5, 6, 8, 10, 12)))


def _read(rng: random.Random, household: float = 0.6, most_steps: int = 7) -> Reading:
    """Return a state after a random walk; with the chance `household` it is one of the household."""
    world = _world(rng)
    observation, actions = world.start(), world.actions()
    episode = EpisodeHistory(world.task, rng.choice((2, 4, 8, None)))
    for _ in range(rng.randrange(most_steps + 1)):
        action = rng.choice(actions)
        episode.act(episode.state(observation, actions), action, _thought(rng, world.task, observation, action))
        observation, actions = world.step(action), world.actions()
    if rng.random() < 0.2:
        rng.shuffle(actions)
    state = episode.state(observation, actions)
    if rng.random() < household:
        state = _at_home(rng, state)
    return Reading(world, state)


def _at_home(rng: random.Random, state: State) -> State:
    """Return a state of the household, behind the past of another."""
    task, observation, actions = house(rng)
    return replace(state, task=task, observation=observation, admissible_actions=tuple(actions))


def _form(rng: random.Random, name: str) -> PromptFormat:
    """Return a format, with the package's own words or others."""
    template = None
    if name == "text" and rng.random() < 0.2:
        template = "{{ task }}\n" + _PAST + "{{ observation }}\n" + rng.choice(_LISTS) + "{{ instruction }}"
    return prompt_format(
        PromptConfig(format=name, system=rng.choice(_SYSTEMS), instruction=rng.choice(_INSTRUCTIONS), template=template)
    )


def _thought(rng: random.Random, task: str, observation: str, action: str) -> str:
    return rng.choice(_THOUGHTS).format(a=action, k=task, o=observation)


def _answer(rng: random.Random, form: PromptFormat, state: State, thinks: float) -> str:
    action = rng.choice(state.admissible_actions or ("look",))
    thought = _thought(rng, state.task, state.observation, action) if rng.random() < thinks else None
    return form.response(action, thought)


def _turn(name: str, thinks: float, household: float = 0.6, more_answers: Sequence[int] = (0, 3, 6, 9)) -> Any:
    """Return a maker of single turns, in which one state may be answered several times."""

    def make(rng: random.Random) -> Sample:
        form, state = _form(rng, name), _read(rng, household).state
        messages: list[dict[str, Any]] = [*form.policy_prompt(state)]  # type: ignore[list-item]
        messages.append(_assistant(_answer(rng, form, state, thinks)))
        more = rng.choice(_MORE)
        for _ in range(rng.choice(more_answers)):
            messages += [{"role": "user", "content": more}, _assistant(_answer(rng, form, state, thinks))]
        return Sample(messages)

    return make


def _react(rng: random.Random) -> Sample:
    form, thinks = _form(rng, "react"), rng.choice((0.0, 0.5, 1.0))
    world = _world(rng)
    observation, actions = world.start(), world.actions()
    episode = EpisodeHistory(world.task, None)
    for _ in range(rng.choice((1, 2, 4, 6, 8, 12, 16))):
        action = rng.choice(actions)
        thought = _thought(rng, world.task, observation, action) if rng.random() < thinks else None
        episode.act(episode.state(observation, actions), action, thought)
        observation, actions = world.step(action), world.actions()
    state = episode.state(observation, actions)
    if rng.random() < 0.6:
        state = _at_home(rng, state)
    return Sample([*form.policy_prompt(state), _assistant(_answer(rng, form, state, thinks))])  # type: ignore[list-item]


def _tools(rng: random.Random) -> Sample:
    world = _world(rng)
    schemas, observation, actions = world.schemas(), world.start(), world.actions()
    system = rng.choice(("You act in a text world by calling functions.", "You are an agent.", ""))
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": f"{world.task}\n{observation}"})
    for _ in range(rng.choice((1, 2, 4, 6))):
        # The last one, which looks around, is none of the functions.
        action = rng.choice(actions[:-1])
        name, arguments = world.calls[action]
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": world.step(action)})
        actions = world.actions()
    return Sample([*messages, _assistant(rng.choice(("I am done.", f"I tried to {world.task}.")))], schemas)


def _world_model(rng: random.Random) -> Sample:
    form, read = _form(rng, "text"), _read(rng, 0)
    action = rng.choice(read.actions)
    prompt = form.world_model_prompt(read.state, action)
    return Sample([*prompt, _assistant(form.outcome(read.world.step(action)))])  # type: ignore[list-item]


def _questions(rng: random.Random) -> Sample:
    """Several questions about one text."""
    read = _read(rng)
    text = _form(rng, rng.choice(("text", "text", "tagged"))).policy_prompt(read.state)[-1]["content"]
    messages: list[dict[str, Any]] = [{"role": "system", "content": _READER}]
    for _ in range(rng.choice((2, 4, 6))):
        asked = rng.choice(QUESTIONS)(read, rng)
        if asked is not None:
            question, answer = asked
            content = question if len(messages) > 1 else f"{text}\nQuestion: {question}"
            messages += [{"role": "user", "content": content}, _assistant(f"Answer: {answer}")]
    return Sample(messages) if len(messages) > 1 else _questions(rng)


def _lists(rng: random.Random) -> Sample:
    """Lines of words: all of them said again, or one after the other as they come to mind."""
    lengths = [rng.randrange(1, 5) for _ in range(rng.randrange(2, 20))]
    phrases = [" ".join(words.noun(rng) for _ in range(length)) for length in lengths]
    listed = "\n".join([rng.choice(("Lines:", "You can:", "")), *phrases])
    if rng.random() < 0.4:
        return Sample([{"role": "user", "content": f"{listed}\nSay it again."}, _assistant("\n".join(phrases))])
    messages: list[dict[str, Any]] = [{"role": "user", "content": listed}]
    for _ in range(rng.choice((4, 8))):
        said = rng.choice(phrases)
        messages.append(_assistant(rng.choice((f"Action: {said}", said))))
        messages.append({"role": "user", "content": rng.choice(_MORE)})
    return Sample(messages[:-1])


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


_KINDS = {
    _turn("text", 0.1): 0.34, _turn("tagged", 0.6): 0.14, _react: 0.14, _tools: 0.1, _world_model: 0.03,
    _questions: 0.17, _lists: 0.08,
}  # fmt: skip
_AT_HOME = {
    _turn("text", 0.1, 1.0, (10, 20)): 1.4,
    _turn("tagged", 0.5, 1.0, (10, 20)): 0.5,
    _turn("react", 0.3, 1.0, (10, 20)): 0.7,
}


def texts(seed: int, count: int) -> Iterator[str]:
    """Yield the texts of samples, from which a tokenizer learns its words."""
    stream = samples(seed)
    for _ in range(count):
        sample = next(stream)
        calls = [json.dumps(m["tool_calls"][0]["function"]) for m in sample.messages if m.get("tool_calls")]
        turns = [f"{message['role']}\n{message['content']}" for message in sample.messages]
        yield "\n".join([*turns, *calls, json.dumps(sample.tools or [])])
