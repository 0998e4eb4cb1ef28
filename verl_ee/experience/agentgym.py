"""Expert trajectories in the conversation form of AgentGym (arXiv 2406.04151), in which AgentTraj-L is published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from verl_ee.config import EnvironmentConfig
from verl_ee.envs import ExpertStep, ExpertTrajectory, arguments, version_of
from verl_ee.errors import ConfigError, ExpertFileError
from verl_ee.experience.files.json_lines import JsonObject, Value, check_keys, read_objects, typed_value
from verl_ee.prompts.react import THOUGHT_PREFIX
from verl_ee.prompts.response import ACTION_PREFIX, read_response

SIDES = ("human", "gpt")
"""The two sides of a conversation, in the order in which they take turns."""
Instruction = Literal["first", "environment"]
"""Origin of an instruction: the first message of the conversation, or the environment, when it is played."""
_check_keys = partial(check_keys, error=ExpertFileError)


def read_agentgym(
    path: Path,
    environment: EnvironmentConfig,
    goal: str | None = None,
    success: bool = False,
    instruction: Instruction = "first",
) -> Iterator[ExpertTrajectory]:
    """Yield the trajectories of a file: a JSON array, as AgentGym writes it, or JSON lines.

    Args:
        path: the file.
        environment: the environment that the trajectories are said to come from; its installed version is recorded.
        goal: regular expression for the instruction in the first observation, its first group if it has one; None
            leaves the instruction to `instruction`.
        success: success of the trajectories that do not say theirs.
        instruction: `first` takes the first message, which is the same for all tasks of an environment; `environment`
            leaves the instruction open.

    Raises:
        ConfigError: if `goal` is not a regular expression, or the instruction is left open besides.
        EnvError: if the environment is unknown or does not take its arguments.
        ExpertFileError: with file, place, what is wrong and what to do.
    """
    pattern = _compiled(goal)
    if pattern is not None and instruction == "environment":
        raise ConfigError("--goal and --instruction environment both say where the instruction is. Give one of them.")
    arguments(environment.id, environment.kwargs)
    version = version_of(environment.id)
    is_empty = True
    for where, item in read_objects(path, ExpertFileError, "Repair it, or get the file again."):
        is_empty = False
        _check_keys(item, ("item_id", "id", "conversations", "success"), where)
        texts = _texts(_typed(item, "conversations", list, where), where)
        # The first two texts are the instruction and its acknowledgement.
        observations, responses = texts[2::2], texts[3::2]
        yield ExpertTrajectory(
            environment=environment.id,
            version=version,
            kwargs=environment.kwargs,
            task=_task(item, where),
            instruction=_instruction(texts, pattern, instruction, where),
            steps=tuple(_steps(observations, responses, where)),
            final_observation=observations[-1] if len(observations) > len(responses) else None,
            success=_typed(item, "success", bool, where) if "success" in item else success,
        )
    if is_empty:
        raise ExpertFileError(f"{path} holds no trajectory. Name a file that holds some.")


def _compiled(goal: str | None) -> re.Pattern[str] | None:
    try:
        return None if goal is None else re.compile(goal)
    except re.error as error:
        raise ConfigError(f"--goal {goal!r} is not a regular expression ({error}).") from None


def _texts(messages: Sequence[object], where: str) -> list[str]:
    """Return the texts of a conversation, in which the two sides take turns."""
    texts = [_text(message, index, f"{where}, message {index + 1}") for index, message in enumerate(messages)]
    if len(texts) < 4:
        raise ExpertFileError(
            f"{where}: {len(texts)} messages; expected instruction, acknowledgement, observation, response, and so on."
        )
    if ACTION_PREFIX in texts[1]:
        raise ExpertFileError(
            f"{where}, message 2: it holds an action, expected the acknowledgement of the instruction in message 1. "
            "Put one in, and the first observation after it."
        )
    return texts


def _text(message: object, index: int, where: str) -> str:
    """Return the text of one message."""
    if not isinstance(message, dict):
        raise ExpertFileError(f"{where}: expected a JSON object, found {type(message).__name__}.")
    _check_keys(message, ("from", "value", "loss"), where)
    side = SIDES[index % 2]
    if message.get("from") != side:
        raise ExpertFileError(
            f"{where}: it is from {message.get('from')!r}, expected {side!r}: human and gpt take turns, human first."
        )
    if index > 1 and side == "gpt" and message.get("loss") is False:
        raise ExpertFileError(f"{where}: its loss is false, so the expert did not do this. Take the turn out.")
    return _typed(message, "value", str, where)


def _steps(observations: Sequence[str], responses: Sequence[str], where: str) -> Iterator[ExpertStep]:
    """Yield the steps of a trajectory; an observation behind the last response belongs to none."""
    for index, (observation, response) in enumerate(zip(observations, responses, strict=False)):
        action, thought = _split(response, f"{where}, message {2 * index + 4}")
        yield ExpertStep(observation, action, thought)


def _split(response: str, where: str) -> tuple[str, str | None]:
    """Return action and thought of a response."""
    read = read_response(response)
    if read.action is None:
        raise ExpertFileError(
            f"{where}: no action after {ACTION_PREFIX!r} at the start of a line. Only the form Thought, Action is read."
        )
    return read.action, read.thought.removeprefix(THOUGHT_PREFIX).strip() or None


def _task(item: JsonObject, where: str) -> str:
    task = item.get("item_id", item.get("id"))
    if isinstance(task, bool) or not isinstance(task, str | int):
        raise ExpertFileError(f"{where}: 'item_id' must be text or a number, found {task!r}.")
    return str(task)


def _instruction(
    texts: Sequence[str], pattern: re.Pattern[str] | None, instruction: Instruction, where: str
) -> str | None:
    if pattern is not None:
        return _goal(pattern, texts[2], f"{where}, message 3")
    return texts[0] if instruction == "first" else None


def _goal(pattern: re.Pattern[str], observation: str, where: str) -> str:
    match = pattern.search(observation)
    if match is None:
        raise ExpertFileError(f"{where}: nothing matches --goal {pattern.pattern!r} in {observation[:200]!r}.")
    return str(match[1] if pattern.groups else match[0]).strip()


def _typed(item: Mapping[str, object], key: str, kind: type[Value], where: str) -> Value:
    return typed_value(item, key, kind, where, ExpertFileError)
