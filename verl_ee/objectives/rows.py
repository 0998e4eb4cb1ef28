"""Training examples as text: chat messages to read, and the assistant's message that is learned.

Every example but a recorded one is a row first. A job encodes rows with its tokenizer; an export writes them as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from verl_ee.config.models import Objective
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError, ExampleFileError, did_you_mean
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.files.json_lines import check_keys, typed_value
from verl_ee.objectives.reflection.rationales import Rationale
from verl_ee.objectives.targets import TargetBuilder, raw_target
from verl_ee.prompts.format import Message, PromptFormat
from verl_ee.prompts.response import listed_action
from verl_ee.prompts.state import State

Turns = Literal["last", "all"]
"""The messages of the assistant that are learned, where a conversation has several."""
ROLES = ("system", "user", "assistant")
_KEYS = ("messages", "objective", "provenance", "metadata", "tools")


@dataclass(frozen=True)
class Row:
    """One example, not yet encoded.

    Attributes:
        prompt: messages that are only read, at least one.
        target: text of the assistant's message that is learned.
        objective: the objective it belongs to.
        provenance: its origin: trajectory, step and, for a branch, the transition.
        turns: whether earlier messages of the assistant are learned too.
    """

    prompt: tuple[Message, ...]
    target: str
    objective: Objective
    provenance: str = ""
    turns: Turns = "last"

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, which ends with what the assistant says."""
        return [*self.prompt, {"role": "assistant", "content": self.target}]


def imitation_rows(
    trajectories: Iterable[ExpertTrajectory], history_length: int | None, form: PromptFormat
) -> Iterator[Row]:
    """Yield one row per expert step: the state, then the expert's thought (if it has one) and action.

    A step that the expert took after the task was solved is left out.

    Raises:
        ExampleError: if a rollout would read another action from a response.
    """
    for index, trajectory in enumerate(trajectories):
        for step, state in enumerate(expert_states(trajectory, history_length)):
            expert_step, provenance = trajectory.steps[step], f"trajectory {index}, step {step}"
            if expert_step.solved:
                continue
            response = expert_response(form, expert_step.action, expert_step.thought, state, provenance)
            yield Row(tuple(form.policy_prompt(state)), response, "imitation", provenance)


def reflection_rows(
    trajectories: Sequence[ExpertTrajectory],
    rationales: Iterable[Rationale],
    history_length: int | None,
    form: PromptFormat,
) -> Iterator[Row]:
    """Yield one row per accepted rationale: the state, then the rationale and the expert's action (equation 4).

    The action is attached here, as the expert took it; neither alternatives nor outcomes are in the input.
    """
    states = [expert_states(trajectory, history_length) for trajectory in trajectories]
    for rationale in rationales:
        if not rationale.accepted:
            continue
        ref = rationale.ref
        state = states[ref.trajectory][ref.step]
        prompt = form.policy_prompt(state)
        provenance = f"trajectory {ref.trajectory}, step {ref.step}, {rationale.writer}"
        action = trajectories[ref.trajectory].steps[ref.step].action
        response = expert_response(form, action, rationale.text, state, provenance)
        yield Row(tuple(prompt), response, "reflection", provenance)


def world_model_rows(
    trajectories: Sequence[ExpertTrajectory],
    branches: Iterable[ExecutedBranch],
    history_length: int | None,
    form: PromptFormat,
    target: TargetBuilder = raw_target,
) -> Iterator[Row]:
    """Yield one row per branch: the state and an action, then the outcome of the action (equation 3).

    An expert's thoughts are no part of a state, so they are not in the input.
    """
    states = [expert_states(trajectory, history_length) for trajectory in trajectories]
    for branch in branches:
        ref = branch.ref
        state = states[ref.trajectory][ref.step]
        prompt = form.world_model_prompt(state, branch.outcome.action)
        provenance = f"trajectory {ref.trajectory}, step {ref.step}, {branch.transition[:12]}"
        yield Row(tuple(prompt), form.outcome(target(state, branch)), "world_model", provenance)


def expert_response(form: PromptFormat, action: str, thought: str | None, state: State, provenance: str) -> str:
    """Return the response that takes an action in a state.

    Args:
        form: form of prompts and responses.
        action: the action.
        thought: the thought before it, if there is one.
        state: the state.
        provenance: names the step in messages.

    Raises:
        ExampleError: if a rollout would read another action from it.
    """
    response, listed = form.response(action, thought), state.admissible_actions or ()
    read = form.read(response, listed).action or ""
    # One that the environment lists in a slightly other form is executed so.
    if read.strip() != action.strip() and read != listed_action(action, listed):
        raise ExampleError(
            f"{provenance}: a response with the action {action!r} is read back as {read!r}, so the policy would learn "
            f"to do something else. Take the step out, or write the action without {form.answer_mark!r} and "
            "without control tokens of the model."
        )
    return response


def row_to_json(row: Row) -> dict[str, object]:
    """Return a row as a JSON object."""
    return {"messages": row.messages, "objective": row.objective, "provenance": row.provenance}


def rows_from_json(
    item: Mapping[str, object], where: str, objective: Objective | None, turns: Turns | None, provenance: str
) -> Iterator[Row]:
    """Yield the rows of a JSON object: one, or one per message of the assistant.

    Args:
        item: `messages`; `objective` and `provenance`, which may be left out; `metadata`, which is not read.
        where: file and line, for messages.
        objective: objective of the file; None where each object says its own.
        turns: which messages of the assistant are learned if there are several; None refuses such a conversation.
        provenance: provenance of an object that does not say its own.

    Raises:
        ExampleFileError: with file, line, what is wrong and what to do.
    """
    check_keys(item, _KEYS, where, ExampleFileError)
    if item.get("tools"):
        raise ExampleFileError(
            f"{where}: 'tools' are not rendered. Write them into the system message, and drop the key."
        )
    objective = _objective(item, objective, where)
    if item.get("provenance") is not None:
        provenance = typed_value(item, "provenance", str, where, ExampleFileError)
    listed = typed_value(item, "messages", list, where, ExampleFileError)
    messages = [_message(message, index, f"{where}, message {index + 1}") for index, message in enumerate(listed)]
    replies = _reply_indices(messages, turns, where)
    for index in replies if turns == "all" else replies[-1:]:
        _check_reply(messages, index, f"{where}, message {index + 1}")
        is_one_of_several = turns == "all" and len(replies) > 1
        origin = f"{provenance}, message {index + 1}" if is_one_of_several else provenance
        yield Row(tuple(messages[:index]), messages[index]["content"], objective, origin)


def _objective(item: Mapping[str, object], of_file: Objective | None, where: str) -> Objective:
    """Return the objective of a JSON object: its own, else that of its file."""
    own = item.get("objective")
    if own is None:
        if of_file is None:
            raise ExampleFileError(
                f"{where}: the objective is not known. Add the key 'objective' ({', '.join(get_args(Objective))}), or "
                "give the file the name of one of the three."
            )
        return of_file
    if own not in get_args(Objective):
        raise ExampleFileError(f"{where}: unknown objective {own!r}. {did_you_mean(str(own), get_args(Objective))}")
    if of_file is not None and own != of_file:
        raise ExampleFileError(f"{where}: objective {own!r} in a file of {of_file!r}. Move the line to its own file.")
    return cast(Objective, own)


def _message(message: object, index: int, where: str) -> Message:
    if not isinstance(message, dict):
        raise ExampleFileError(f"{where}: expected a JSON object, found {type(message).__name__}.")
    check_keys(message, ("role", "content"), where, ExampleFileError)
    role = typed_value(message, "role", str, where, ExampleFileError)
    if role not in ROLES:
        raise ExampleFileError(f"{where}: unknown role {role!r}. {did_you_mean(role, ROLES)} Only text is learned.")
    if role == "system" and index > 0:
        raise ExampleFileError(f"{where}: only the first message may be the system's.")
    return {"role": role, "content": typed_value(message, "content", str, where, ExampleFileError)}


def _reply_indices(messages: Sequence[Message], turns: Turns | None, where: str) -> list[int]:
    """Return the indices of the assistant's messages; there is at least one, and the conversation ends with it."""
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies or replies[-1] != len(messages) - 1:
        raise ExampleFileError(
            f"{where}: the last message is not the assistant's, so nothing is learned. Drop the line."
        )
    if len(replies) > 1 and turns is None:
        raise ExampleFileError(
            f"{where}: {len(replies)} messages are the assistant's. Say which are learned: --turns last if the row is "
            "one state with its past, --turns all if it is a whole episode."
        )
    return replies


def _check_reply(messages: Sequence[Message], index: int, where: str) -> None:
    """Refuse a message of the assistant that cannot be learned."""
    if not messages[index]["content"].strip():
        raise ExampleFileError(f"{where}: there is no text to learn. Drop the line.")
    if index == 0 or messages[index - 1]["role"] != "user":
        raise ExampleFileError(f"{where}: the assistant answers no user. Put its message first.")
