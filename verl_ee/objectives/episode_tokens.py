"""Token ids of a chat that grows: the assistant's turns, and what the chat template puts between them."""

from __future__ import annotations

from collections.abc import Sequence

from verl_ee.config.base import ROOT
from verl_ee.errors import ExampleError
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts.format import Message

_TURN_SAMPLES = f"Use {ROOT}.samples=turn."


def episode_tokens(encoder: Encoder, messages: Sequence[Message]) -> tuple[list[int], list[int], list[bool]]:
    """Return the token ids of a chat as a rollout would see it grow.

    Args:
        encoder: encoder of prompts and answers.
        messages: the chat, which ends with an answer of the assistant.

    Returns:
        The ids up to the first answer, the ids behind it, and which of the latter are the assistant's.

    Raises:
        ExampleError: if the chat template renders past turns in another way than it rendered them at first.
    """
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    prompt, target = encoder.conversation(messages[: replies[0]], messages[replies[0]]["content"])
    ids, learned = [*prompt, *target], [True] * len(target)
    for index in replies[1:]:
        asked, answer = encoder.conversation(messages[:index], messages[index]["content"])
        added = _behind(encoder, ids, asked)
        ids += [*added, *answer]
        learned += [*[False] * len(added), *[True] * len(answer)]
    return prompt, ids[len(prompt) :], learned


def turn_delta(
    encoder: Encoder, asked: Sequence[Message], answer: str, following: Sequence[Message]
) -> tuple[int, list[int]]:
    """Return the tokens that a chat template puts between an answer and the next one.

    Args:
        encoder: encoder of prompts and answers.
        asked: messages before the answer.
        answer: what the assistant says.
        following: messages before its next answer.

    Returns:
        The token that ends the answer, and those behind it.

    Raises:
        ExampleError: if the chat template renders the answer in another way once the chat goes on.
    """
    prompt, target = encoder.conversation(asked, answer)
    return target[-1], _behind(encoder, [*prompt, *target], encoder.prompt(following))


def appended(asked: Sequence[Message], answer: str | None, following: Sequence[Message]) -> str:
    """Return the answer of the assistant to messages, as the messages before its next answer show it.

    Args:
        asked: messages before the answer.
        answer: the answer, if it is known what it must be.
        following: messages before the next answer.

    Raises:
        ExampleError: if these do not go on from the others, or show another answer.
    """
    shown = following[len(asked)] if len(following) > len(asked) else {"role": "", "content": ""}
    is_other = answer is not None and shown["content"] != answer
    if list(following[: len(asked)]) != list(asked) or shown["role"] != "assistant" or is_other:
        raise ExampleError(
            f"the prompt format changes past turns, so an episode is no growing sequence. {_TURN_SAMPLES}"
        )
    return shown["content"]


def _behind(encoder: Encoder, begin: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return what follows on `begin` in `whole`."""
    if list(whole[: len(begin)]) == list(begin):
        return list(whole[len(begin) :])
    pairs = zip(begin, whole, strict=False)
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), len(whole))
    before, after = (encoder.text(tokens[max(0, first - 4) : first + 4]) for tokens in (begin, whole))
    raise ExampleError(
        f"the chat template rewrites past turns: token {first} of a chat changes once it goes on, {before!r} becomes "
        f"{after!r}. An episode is no growing sequence then. {_TURN_SAMPLES}"
    )
