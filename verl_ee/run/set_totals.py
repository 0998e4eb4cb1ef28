"""Totals of collecting a set of branches, and their sum over all sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Annotated

from pydantic import AliasChoices, Field

from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.cost import money

if TYPE_CHECKING:
    from verl_ee.experience.collecting.collection import CollectionResult


COUNTS = tuple(item.name for item in fields(AlternativeCounts))


@dataclass(frozen=True)
class SetTotals:
    """Results and costs of collecting.

    Attributes:
        states: expert states.
        transitions: distinct executed transitions.
        mismatches: states that could not be reached again.
        env_steps: environment steps executed, replay included.
        seconds: wall time.
        branches: alternatives and expert actions with an outcome.
        reused: transitions that a shared cache knew before.
        failed: actions that could not be executed.
        faults: how often each kind of fault occurred.
        restore: how states were reached again, joined by `+` where sets differ; empty if nothing was executed.
            Version 0.1 called it `way`.
        resets: episodes begun.
        prompt_tokens: read by the policy that proposed alternatives.
        completion_tokens: written by it.
        bytes: size of the tables.
        possible: alternatives that were possible, at most K per state.
        own: how many of these the policy wrote itself.
        filled: how many of these there are.
        responses: responses of the policy that proposed alternatives.
        without_action: how many of them held no action.
        unasked: states in which the policy was not asked, because the prompt was too long.
        money: price of all this; None if there is no price table.
    """

    states: int
    transitions: int
    mismatches: int
    env_steps: int
    seconds: float
    branches: int = 0
    reused: int = 0
    failed: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    restore: Annotated[str, Field(validation_alias=AliasChoices("restore", "way"))] = ""
    resets: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    possible: int = 0
    own: int = 0
    filled: int = 0
    responses: int = 0
    without_action: int = 0
    unasked: int = 0
    money: float | None = None

    @classmethod
    def of(cls, result: CollectionResult, prices: Mapping[str, float] | None = None) -> SetTotals:
        """Return the totals of a collection, and what it cost if there are prices."""
        return cls(
            states=result.states,
            transitions=result.transitions,
            branches=result.branches,
            reused=result.reused,
            mismatches=result.lost,
            failed=result.failed,
            faults=dict(result.faults),
            restore=result.restore,
            money=money(result.cost, prices) if prices else None,
            **asdict(result.cost),
            **asdict(result.alternatives),
        )

    def __add__(self, other: SetTotals) -> SetTotals:
        """Return both together; money is known only where both know it."""
        known = self.money is not None and other.money is not None
        return SetTotals(
            states=self.states + other.states,
            transitions=self.transitions + other.transitions,
            branches=self.branches + other.branches,
            reused=self.reused + other.reused,
            mismatches=self.mismatches + other.mismatches,
            failed=self.failed + other.failed,
            faults=dict(Counter(self.faults) + Counter(other.faults)),
            restore=_joined(self.restore, other.restore),
            env_steps=self.env_steps + other.env_steps,
            resets=self.resets + other.resets,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            seconds=self.seconds + other.seconds,
            bytes=self.bytes + other.bytes,
            money=(self.money or 0.0) + (other.money or 0.0) if known else None,
            **asdict(self.alternatives + other.alternatives),
        )

    @property
    def alternatives(self) -> AlternativeCounts:
        """The counts of alternatives, and of the responses that they come from."""
        return AlternativeCounts(**{name: getattr(self, name) for name in COUNTS})

    def to_json(self) -> dict[str, object]:
        """Return the totals as `summary.json` holds them: without `money` where it is not known."""
        content = asdict(self)
        if self.money is None:
            del content["money"]
        return content


def total_of(sets: Iterable[SetTotals]) -> SetTotals:
    """Return the sum over at least one set."""
    return reduce(add, sets)


def _joined(*restores: str) -> str:
    """Return the distinct restore methods of several sets."""
    methods = [method for restore in restores for method in restore.split("+") if method]
    return "+".join(dict.fromkeys(methods))
