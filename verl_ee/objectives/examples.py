"""Training examples: rows of text as token ids, and the limit on their length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from verl_ee.config.models import Objective
from verl_ee.errors import ExampleError
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_tokens import episode_tokens
from verl_ee.objectives.rows import Row


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

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest part that is learned in one piece."""
        if self.learned is None:
            return len(self.target)
        return max((len(list(run)) for learned, run in groupby(self.learned) if learned), default=0)


def encode(rows: Iterable[Row], encoder: Encoder) -> Iterator[Example]:
    """Yield the example of each row.

    Raises:
        ExampleError: naming the row that the chat template cannot render.
    """
    for row in rows:
        try:
            yield _example(row, encoder)
        except ExampleError as error:
            raise ExampleError(f"{row.objective}, {row.provenance}: {error}") from None


def _example(row: Row, encoder: Encoder) -> Example:
    if row.turns == "last":
        prompt, target = encoder.conversation(row.prompt, row.target)
        return Example(tuple(prompt), tuple(target), row.objective, provenance=row.provenance)
    prompt, target, own = episode_tokens(encoder, row.messages)
    return Example(tuple(prompt), tuple(target), row.objective, provenance=row.provenance, learned=tuple(own))


def neutral_row(row: Row, encoder: Encoder) -> Row:
    """Return a row whose texts hold no control tokens but the model's own."""
    *prompt, answer = encoder.neutral(row.messages)
    return replace(row, prompt=tuple(prompt), target=answer["content"])


@dataclass(frozen=True)
class LengthLimits:
    """Limits in tokens.

    Attributes:
        example: of an example.
        target: of what follows on its prompt, if the policy is to write it: the outcome that a world model predicts is
            no such thing.
        answer: of a single answer of the policy; longer ones would teach it to be cut off.
    """

    example: int
    target: int
    answer: int

    def excess(self, example: Example) -> str:
        """Return how an example is too long; empty if it is not."""
        if len(example) > self.example:
            return f"{len(example)} of {self.example} tokens"
        if example.objective == "world_model":
            return ""
        if len(example.target) > self.target:
            return f"{len(example.target)} of {self.target} tokens behind the prompt"
        longest = example.longest_answer
        return f"an answer of {longest} tokens, of {self.answer}" if longest > self.answer else ""


def check_length(count: int, dropped: int, shown: Sequence[str], max_dropped: float, stage: str) -> None:
    """Refuse a stage of which too much is over the length limits.

    Args:
        count: number of examples within the limits.
        dropped: number of the others.
        shown: provenance and length of the first of these.
        max_dropped: share of examples that may be over a limit.
        stage: named in messages.

    Raises:
        ExampleError: if more is dropped than allowed, or nothing is left.
    """
    total = count + dropped
    if not total:
        raise ExampleError(f"Stage {stage!r} has no examples. Give expert trajectories, or collect branches first.")
    if not count or dropped > max_dropped * total:
        raise ExampleError(
            f"Stage {stage!r}: {dropped} of {total} examples are too long, more than "
            f"early_experience.max_dropped={max_dropped:g} allows ({'; '.join(shown)}). Raise data.max_prompt_length, "
            "data.max_response_length or early_experience.max_turn_tokens, or lower "
            "early_experience.history_length (with samples=turn)."
        )
