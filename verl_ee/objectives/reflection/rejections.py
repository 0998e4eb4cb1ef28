"""The rationales that gates have rejected, told to a user: how many, why, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from verl_ee.config.base import ROOT
from verl_ee.errors import ExampleError
from verl_ee.objectives.reflection.gates import EMPTY, ENDLESS, GATES
from verl_ee.objectives.reflection.rationales import RATIONALES_FILE, Rationale

SHOWN = 3
"""Rejected rationales that a message shows."""
CAUSES = {
    "length": "The writer does not write what it is asked for: a larger model would.",
    "grounded": "The writer does not speak of the situation that it was shown: a larger model would.",
    "repeated": "The writer repeats itself: a higher temperature of the writer helps, or a larger model.",
    "other_action": "The writer wants to do something else, or writes the action itself: a larger model would not.",
}
"""Likely cause where most rationales are rejected by a gate; another gate speaks for itself."""
_TOO_LONG = (
    "The situations are too long for the rollout servers. Raise actor_rollout_ref.rollout.max_model_len, or lower "
    f"{ROOT}.history_length or {ROOT}.reflection.k."
)
CAUSES_OF_NO_TEXT = {
    "cut off at max_tokens": "The writer reaches its limit before it ends. Raise max_tokens of the writer, unless the "
    "texts ramble.",
    "cut off at max_model_len": _TOO_LONG,
    "its prompt": _TOO_LONG,
}
"""Likely cause where most rationales are empty or have no end, by the beginning of the reason."""


def rejected_counts(rationales: Sequence[Rationale]) -> str:
    """Return how many rationales each gate rejected, and how many of them are empty or have no end for which reason.

    Args:
        rationales: accepted and rejected ones.
    """
    rejected = [rationale for rationale in rationales if not rationale.accepted]
    by_gate = Counter(item.gate for item in rejected)
    no_text = Counter(_short(item.reason) for item in rejected if _is_no_text(item))
    causes = ", ".join(f"{count} {cause}" for cause, count in no_text.items())
    counts = {gate: f"{gate} {by_gate[gate]}" for gate in dict.fromkeys((*GATES, *by_gate)) if by_gate[gate]}
    if causes:
        counts["length"] += f" ({causes})"
    return ", ".join(counts.values())


def check_accepted(rationales: Sequence[Rationale], min_accepted: float, folder: Path) -> None:
    """Refuse rationales of which too few passed their gates.

    Args:
        rationales: accepted and rejected ones.
        min_accepted: share that must have passed; at least one must.
        folder: folder of `reflections.parquet`, which a message names.

    Raises:
        ExampleError: with the counts, the likely cause and three of them.
    """
    accepted_count = sum(rationale.accepted for rationale in rationales)
    if not accepted_count or accepted_count < min_accepted * len(rationales):
        raise ExampleError(too_few(rationales, min_accepted, folder / RATIONALES_FILE))


def too_few(rationales: Sequence[Rationale], min_accepted: float, path: Path) -> str:
    """Return the message of a run that stops because too few rationales passed.

    Args:
        rationales: accepted and rejected ones.
        min_accepted: share that must pass.
        path: file of them all.
    """
    rejected = [rationale for rationale in rationales if not rationale.accepted]
    # An empty one shows nothing.
    shown = sorted(rejected, key=lambda item: not item.text)[:SHOWN]
    return (
        f"{len(rationales) - len(rejected)} of {len(rationales)} rationales passed the gates (rejected: "
        f"{rejected_counts(rejected)}); at least one, and {ROOT}.reflection.min_accepted={min_accepted:g} of them, "
        f"must. {likely_cause(rejected)} All are in {path}. Let another writer write, or ask fewer gates; then delete "
        f"{path} and add {ROOT}.resume=force. {len(shown)} of them:\n  "
        + "\n  ".join(f"{item.gate}: it {item.reason}: {item.text!r}" for item in shown)
    )


def likely_cause(rejected: Sequence[Rationale]) -> str:
    """Return why most rationales were rejected, as a sentence with what helps.

    Args:
        rejected: at least one.
    """
    ((gate, count),) = Counter(item.gate for item in rejected).most_common(1)
    no_text = [item for item in rejected if _is_no_text(item)]
    if gate == "length" and 2 * len(no_text) > count:
        ((short, _),) = Counter(_short(item.reason) for item in no_text).most_common(1)
        causes = (cause for begin, cause in CAUSES_OF_NO_TEXT.items() if short.startswith(begin))
        return next(causes, f"Most are empty or have no end ({short}): see what the writer answers.")
    return CAUSES.get(gate, f"Most fail the gate {gate!r}.")


def _is_no_text(rationale: Rationale) -> bool:
    return rationale.reason.startswith((EMPTY, ENDLESS))


def _short(reason: str) -> str:
    """Return the cause of a missing text, without numbers that differ from text to text."""
    cause = reason.removeprefix(EMPTY).removeprefix(ENDLESS).removeprefix(": ") or "empty"
    return "its prompt is too long" if cause.startswith("its prompt") else cause
