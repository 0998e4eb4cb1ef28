"""Gates that a rationale passes before it becomes training data; each rejects with a reason.

They catch what the authors of the method found in their own data: rationales that name the label, number the options,
or tell an outcome as if it had been seen before the action (paper, section 4.3, and the notes of its release).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verl_ee.objectives.reflection import gate_patterns
from verl_ee.prompts.actions import canonical

MIN_WORDS, MAX_WORDS = 8, 500
"""Length of a rationale; the upper bound is the soft cap of the release."""
COPIED_WORDS = 6
"""Consecutive words of an outcome that a rationale has from nowhere else, even if it only expects them."""
REPEATED_WORDS = 4
"""Words that nobody writes twice in a row; a sentence with more is not written twice at all."""


@dataclass(frozen=True)
class RationaleDraft:
    """A rationale and what it may and may not know.

    Attributes:
        text: as it was written.
        state: all that the agent sees, as text.
        action: the expert's action, which the rationale should lead to.
        outcome: the observation that the expert's action leads to.
        alternatives: the other actions that were executed.
    """

    text: str
    state: str
    action: str
    outcome: str
    alternatives: tuple[str, ...] = ()


def length(rationale: RationaleDraft) -> str:
    """Reject an empty, very short or over-long rationale."""
    words = sum(any(map(str.isalnum, word)) for word in rationale.text.split())
    if words == 0:
        return "is empty"
    if words < MIN_WORDS:
        return f"has {words} words, fewer than {MIN_WORDS}"
    return f"has {words} words, more than {MAX_WORDS}" if words > MAX_WORDS else ""


def label_words(rationale: RationaleDraft) -> str:
    """Reject words that only someone who was told the answer would use; that something is a good way is no label."""
    found = _unseen(gate_patterns.LABELS, rationale)
    return f"names the label: {found!r}" if found else ""


def numbered_options(rationale: RationaleDraft) -> str:
    """Reject references to a numbered list of options, unless the agent sees one."""
    found = _unseen(gate_patterns.NUMBERED, rationale)
    return f"numbers the options: {found!r}" if found else ""


def outcome_as_seen(rationale: RationaleDraft) -> str:
    """Reject an outcome told as known before the action that reveals it; to expect it is no leak, to copy it is."""
    for sentence in re.split(r"(?<=[.!?])\s+", rationale.text):
        found = gate_patterns.SEEN.search(sentence)
        if found and not gate_patterns.PAST.search(sentence):
            return f"tells the outcome as seen: {found.group(0).strip()!r}"
    known = (rationale.state, rationale.action, f"I {rationale.action}", *rationale.alternatives)
    outcome = gate_patterns.ECHO.sub("", rationale.outcome)
    copied = gate_patterns.grams(rationale.text, COPIED_WORDS) & gate_patterns.grams(outcome, COPIED_WORDS)
    copied = copied.difference(*(gate_patterns.grams(text, COPIED_WORDS) for text in known))
    if copied:
        return f"copies the outcome: {' '.join(min(copied))!r}"
    named = (gate_patterns.names(rationale.text) & gate_patterns.names(outcome)).difference(
        *map(gate_patterns.names, known)
    )
    if named:
        return f"names what only the outcome shows: {min(named)!r}"
    told = _told(gate_patterns.claims(rationale.text), outcome, known)
    return f"tells the outcome as seen: {told!r}" if told else ""


def other_action(rationale: RationaleDraft) -> str:
    """Reject a rationale that takes an action itself, or that settles on another one than the expert's."""
    taken = gate_patterns.TAKEN.search(rationale.text)
    if taken:
        return f"takes an action itself: {(taken.group(1) or taken.group(2) or '').strip()!r}"
    sentences = [text for text in re.split(r"(?<=[.!?])\s+|\n+", rationale.text.lower()) if text.strip()]
    for back, sentence in enumerate(reversed(sentences)):
        expert = list(gate_patterns.mentions(sentence, rationale.action))
        for alternative in rationale.alternatives:
            for committed, declined in gate_patterns.mentions(sentence, alternative, rationale.action):
                undecided = back or expert or declined
                if not undecided or (committed and not any(mine for mine, _ in expert)):
                    return f"settles on another action: {canonical(alternative)!r}"
        if any(committed or not declined for committed, declined in expert):
            return ""
    return ""


def repeated(rationale: RationaleDraft) -> str:
    """Reject a text that was written twice, as a whole, in long sentences or word by word."""
    words = gate_patterns.plain(rationale.text).split()
    sentences = [gate_patterns.plain(sentence) for sentence in re.split(r"[.!?\n]+", rationale.text)]
    long = [sentence for sentence in sentences if len(sentence.split()) > REPEATED_WORDS]
    twice = next((sentence for sentence in long if long.count(sentence) > 1), None)
    if twice:
        return f"repeats a sentence: {twice!r}"
    for size in range(REPEATED_WORDS, len(words) // 2 + 1):
        equal = "".join("01"[word == after] for word, after in zip(words, words[size:], strict=False))
        at = equal.find("1" * size)
        if at >= 0:
            return f"repeats words: {' '.join(words[at : at + size])!r}"
    return ""


Gate = Callable[[RationaleDraft], str]
GATES: dict[str, Gate] = {
    "length": length,
    "label_words": label_words,
    "numbered_options": numbered_options,
    "outcome_as_seen": outcome_as_seen,
    "other_action": other_action,
    "repeated": repeated,
}
"""Every gate by name, in the order in which they are asked."""


def first_rejection(rationale: RationaleDraft, gates: Sequence[str] = tuple(GATES)) -> tuple[str, str]:
    """Return name and reason of the first gate that rejects, or two empty texts.

    Args:
        rationale: what to judge.
        gates: names from `GATES`.
    """
    for name in gates:
        reason = GATES[name](rationale)
        if reason:
            return name, reason
    return "", ""


def _unseen(pattern: re.Pattern[str], rationale: RationaleDraft) -> str:
    """Return the first match whose words the agent does not see."""
    seen = f" {gate_patterns.plain(rationale.state)} {gate_patterns.plain(rationale.action)} "
    found = (match.group(0).strip() for match in pattern.finditer(rationale.text))
    return next((text for text in found if f" {gate_patterns.plain(text)} " not in seen), "")


def _told(claims: Sequence[str], outcome: str, known: Sequence[str]) -> str:
    """Return what is claimed and only the outcome says, or an empty text."""
    for numbers in (True, False):
        said = gate_patterns.pieces(outcome, numbers)
        before = [gate_patterns.pieces(text, numbers) for text in known]
        heavy = {words for pieces in before for words in pieces.values()}
        new = {words for words in said if said[words] not in heavy}.difference(*before)
        told = next(filter(None, (new & gate_patterns.pieces(claim, numbers).keys() for claim in claims)), None)
        if told:
            return " ".join(min(told)).replace("_", " ")
    state, *actions = known
    # What the task names is not there yet, but what the state shows besides is.
    shown = state.partition("\n")[2] if state.startswith("Task:") else state
    fresh = gate_patterns.content(outcome) - gate_patterns.content(" ".join([shown, *actions]))
    unnamed, seen = fresh - gate_patterns.content(state), f" {gate_patterns.plain(state)} "
    for claim in claims:
        phrase = gate_patterns.said(gate_patterns.FOUND, fresh, claim) or gate_patterns.said(
            gate_patterns.SHOWS, unnamed, claim
        )
        if phrase and f" {gate_patterns.plain(phrase)} " not in seen:
            return phrase
    return ""
