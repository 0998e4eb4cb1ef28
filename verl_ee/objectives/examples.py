"""Training examples of every objective: rows of text, encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from verl_ee.config.models import Objective
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.store import ExecutedBranch
from verl_ee.objectives.reflection.rationales import Rationale
from verl_ee.objectives.rows import Row, imitation_rows, reflection_rows, world_model_rows
from verl_ee.objectives.targets import TargetBuilder, raw_target
from verl_ee.prompts.text import Message

EncodePrompt = Callable[[list[Message]], list[int]]
EncodeTarget = Callable[[str], list[int]]


@dataclass(frozen=True)
class Encoder:
    """Turns messages and targets into token ids.

    Attributes:
        prompt: the very function that rollouts use, so prompts are equal token for token.
        target: encodes a response, its end-of-turn token included.
    """

    prompt: EncodePrompt
    target: EncodeTarget


@dataclass(frozen=True)
class Example:
    """One sequence to learn from.

    Attributes:
        prompt: token ids that are only read.
        target: token ids that are learned, but for those that `learned` leaves out.
        objective: the objective it belongs to.
        weight: factor of its tokens' loss.
        provenance: where it comes from: trajectory, step and, for a branch, the transition.
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
    """Examples of one stage and what was left out.

    Attributes:
        examples: what fits.
        dropped: provenance of what was over the limit.
    """

    examples: list[Example] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def encode(rows: Iterable[Row], encoder: Encoder) -> Iterator[Example]:
    """Yield the example of each row."""
    for row in rows:
        prompt, target = encoder.prompt(list(row.prompt)), encoder.target(row.target)
        yield Example(tuple(prompt), tuple(target), row.objective, provenance=row.provenance)


def imitation(trajectories: Iterable[ExpertTrajectory], encoder: Encoder, history_length: int) -> Iterable[Example]:
    """Yield the encoded `imitation_rows`."""
    return encode(imitation_rows(trajectories, history_length), encoder)


def reflection(
    trajectories: Sequence[ExpertTrajectory],
    reflections: Iterable[Rationale],
    encoder: Encoder,
    history_length: int,
) -> Iterable[Example]:
    """Yield the encoded `reflection_rows`."""
    return encode(reflection_rows(trajectories, reflections, history_length), encoder)


def world_model(
    trajectories: Sequence[ExpertTrajectory],
    outcomes: Iterable[ExecutedBranch],
    encoder: Encoder,
    history_length: int,
    target: TargetBuilder = raw_target,
) -> Iterable[Example]:
    """Yield the encoded `world_model_rows`."""
    return encode(world_model_rows(trajectories, outcomes, history_length, target), encoder)


def within_length(examples: Iterable[Example], max_length: int, max_dropped: float, stage: str) -> ExampleSet:
    """Keep the examples that fit; a target is never cut.

    Args:
        examples: what to choose from.
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
        shown = "; ".join(result.dropped[:3])
        raise ExampleError(
            f"Stage {stage!r}: {len(result.dropped)} of {total} examples are longer than {max_length} tokens, more "
            f"than early_experience.max_dropped={max_dropped:g} allows ({shown}). Raise data.max_prompt_length or "
            "data.max_response_length, or lower early_experience.history_length."
        )
    return result
