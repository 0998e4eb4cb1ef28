"""The table of `make gpu`: what was recorded of the jobs on a GPU, line by line, and whether it is as it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NATS = 0.05
"""By how much actor and reference may differ in a token's log-probability at equal weights: kernels and the order of
sums differ, and a reference that was not anchored is off by more than 1."""
CORRELATION = 0.99
"""Least correlation of the probabilities that servers and actor give to the sampled tokens."""
ASLEEP = 0.5
"""Most memory of the card that is used while a stage trains, per what is used while servers generate."""
SAME_LOSS = 0.02
"""Relative; offloading and resuming change no number, but kernels do not add in the same order each time."""


@dataclass(frozen=True)
class Recording:
    """Values that six jobs showed.

    Attributes:
        card: name of the GPU.
        policy_before: fingerprint of the policy before the hand-over.
        policy_after: fingerprint behind it.
        reference: fingerprint of the reference.
        reference_gap: nats per token between actor and reference in GRPO's first step, at most.
        correlation: of the probabilities of servers and actor in GRPO's steps, at least.
        memory_training: bytes used on the card while stages train, at least.
        memory_most: bytes used on the card at any time.
        losses: loss of every step of the stages.
        losses_offloaded: the same with weights and moments in the host's memory between steps.
        losses_resumed: the same of a job that was killed and repeated.
        own_alternatives: alternatives that the policy itself proposed, per state, in the job with reflection.
        adapter_change: norm of what GRPO changed in the adapter.
        merged_wrong: weights of the merged model that differ from the checkpoint's in bfloat16.
    """

    card: str
    policy_before: str
    policy_after: str
    reference: str
    reference_gap: float
    correlation: float
    memory_training: float
    memory_most: float
    losses: list[float]
    losses_offloaded: list[float]
    losses_resumed: list[float]
    own_alternatives: float
    adapter_change: float
    merged_wrong: int


@dataclass(frozen=True)
class Verdict:
    """One line of the table.

    Attributes:
        name: the question.
        value: what was recorded.
        limit: what it should be.
        holds: whether it is.
    """

    name: str
    value: str
    limit: str
    holds: bool


def verdicts(recording: Recording) -> list[Verdict]:
    """Return the lines of the table; a value that is no number holds nowhere."""
    r = recording
    prints = (r.policy_before, r.policy_after, r.reference)
    asleep = r.memory_training / r.memory_most if r.memory_most else math.nan
    offloaded, resumed = _gap(r.losses, r.losses_offloaded), _gap(r.losses, r.losses_resumed)
    return [
        Verdict(
            "fingerprints of policy and reference", " ".join(prints), "equal", bool(prints[0]) and len({*prints}) == 1
        ),
        _at_most("reference gap of GRPO's first step, nats", r.reference_gap, NATS),
        _at_least("correlation of servers and actor", r.correlation, CORRELATION),
        _at_most("memory while the actor trains, share of the most", asleep, ASLEEP),
        _at_most("loss offloaded against plain, relative", offloaded, SAME_LOSS),
        _at_most("loss resumed against undisturbed, relative", resumed, SAME_LOSS),
        _at_least("alternatives of the policy per state", r.own_alternatives, 0.1),
        _at_least("change of the adapter in GRPO", r.adapter_change, 1e-6),
        Verdict("weights of the merged model that differ", str(r.merged_wrong), "0", r.merged_wrong == 0),
    ]


def table(recording: Recording) -> str:
    """Return the lines as text, with the card in front."""
    rows = [f"card: {recording.card}"]
    for line in verdicts(recording):
        rows.append(f"{'ok  ' if line.holds else 'FAIL'} {line.name:52} {line.value:>14}   should be {line.limit}")
    return "\n".join(rows)


def _gap(expected: list[float], values: list[float]) -> float:
    """Return the largest relative difference of two curves, or infinity if one lacks a step."""
    if not expected or len(expected) != len(values):
        return math.inf
    return max(abs(a - b) / abs(a) for a, b in zip(expected, values, strict=True))


def _at_most(name: str, value: float, limit: float) -> Verdict:
    return _compared(name, value, f"<= {limit:g}", lambda: value <= limit)


def _at_least(name: str, value: float, limit: float) -> Verdict:
    return _compared(name, value, f">= {limit:g}", lambda: value >= limit)


def _compared(name: str, value: float, limit: str, holds: Callable[[], Any]) -> Verdict:
    return Verdict(name, f"{value:.4g}", limit, math.isfinite(value) and bool(holds()))
