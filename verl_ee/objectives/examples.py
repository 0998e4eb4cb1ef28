"""Training examples: rows of text as token ids, and the limit on their length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from verl_ee.config.models import Objective
from verl_ee.errors import ExampleError
from verl_ee.objectives.rows import Row
from verl_ee.prompts.format import Message

EncodePrompt = Callable[[Sequence[Message]], list[int]]
EncodeConversation = Callable[[Sequence[Message], str], tuple[list[int], list[int]]]
Neutralise = Callable[[Iterable[Message]], list[Message]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Encoder:
    """Functions that turn messages and targets into token ids.

    Attributes:
        prompt: encodes messages, with the very function of the rollouts: prompts are equal token for token.
        conversation: encodes messages and the answer to them, apart; the answer has its end-of-turn token.
        neutral: breaks control tokens in messages that hold texts of an environment, and have not been rendered by a
            format that does so.
        text: returns the text of a response, without control tokens and what belongs to them.
    """

    prompt: EncodePrompt
    conversation: EncodeConversation
    neutral: Neutralise
    text: Decode


@dataclass(frozen=True)
class Example:
    """One sequence to learn from.

    Attributes:
        prompt: token ids that are only read.
        target: token ids that are learned, but for those that `learned` leaves out.
        objective: the objective it belongs to.
        weight: factor of its tokens' loss.
        provenance: its origin: trajectory, step and, for a branch, the transition.
        learned: for each token of the target, whether it is learned; None: all of them.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    objective: Objective
    weight: float = 1.0
    provenance: str = ""
    learned: tuple[bool, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass
class ExampleSet:
    """Examples of one stage.

    Attributes:
        examples: those within the length limit.
        dropped: provenance and length of the others.
    """

    examples: list[Example] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def encode(rows: Iterable[Row], encoder: Encoder) -> Iterator[Example]:
    """Yield the example of each row.

    Raises:
        ExampleError: naming the row that the chat template cannot render.
    """
    for row in rows:
        try:
            prompt, target = encoder.conversation(row.prompt, row.target)
        except ExampleError as error:
            raise ExampleError(f"{row.objective}, {row.provenance}: {error}") from None
        yield Example(tuple(prompt), tuple(target), row.objective, provenance=row.provenance)


def neutral_row(row: Row, encoder: Encoder) -> Row:
    """Return a row whose texts hold no control tokens but the model's own."""
    *prompt, answer = encoder.neutral(row.messages)
    return replace(row, prompt=tuple(prompt), target=answer["content"])


def within_length(examples: Iterable[Example], max_length: int, max_dropped: float, stage: str) -> ExampleSet:
    """Return the examples within the length limit; a target is never cut.

    Args:
        examples: all of the stage.
        max_length: tokens of prompt and target together.
        max_dropped: share of examples that may be over the limit.
        stage: named in messages.

    Raises:
        ExampleError: if more is dropped than allowed, or nothing is left.
    """
    result = ExampleSet()
    for example in examples:
        if len(example) <= max_length:
            result.examples.append(example)
        else:
            result.dropped.append(f"{example.provenance}: {len(example)} tokens")
    total = len(result.examples) + len(result.dropped)
    if not total:
        raise ExampleError(f"Stage {stage!r} has no examples. Give expert trajectories, or collect branches first.")
    if not result.examples or len(result.dropped) > max_dropped * total:
        first = "; ".join(result.dropped[:3])
        raise ExampleError(
            f"Stage {stage!r}: {len(result.dropped)} of {total} examples are longer than {max_length} tokens, more "
            f"than early_experience.max_dropped={max_dropped:g} allows ({first}). Raise data.max_prompt_length or "
            "data.max_response_length, or lower early_experience.history_length."
        )
    return result
