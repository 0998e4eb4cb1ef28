"""Gates that a rationale passes before it becomes training data; each rejects with a reason.

They catch what the authors of the method found in their own data: rationales that name the label, number the options,
or tell an outcome as if it had been seen before the action (paper, section 4.3, and the notes of its release).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verl_ee.objectives.reflection import gate_patterns
from verl_ee.objectives.reflection.grounding import ungrounded

ACCEPTED = "accepted"
"""The fate of a rationale that no gate rejected, in the counts of a summary."""
MIN_WORDS, MAX_WORDS = 8, 500
"""Length of a rationale; the upper bound is the soft cap of the release."""
EMPTY, ENDLESS = "is empty", "has no end"
"""Reasons for which a rationale without a word, and one that its writer did not end, are rejected by any gates."""
COPIED_WORDS = 6
"""Consecutive words of an outcome that a rationale has from nowhere else, even if it only expects them."""
REPEATED_WORDS = 4
"""Words that nobody writes twice in a row; a sentence with more is not written twice at all."""


@dataclass(frozen=True)
class RationaleDraft:
    """A rationale that has not been judged, with everything that it may and may not know.

    Attributes:
        text: as it was written.
        state_text: all that the agent sees.
        expert_action: the action that the rationale should lead to.
        expert_observation: the observation that this action leads to.
        alternatives: the other actions that were executed.
        outcomes: the observations that these lead to.
    """

    text: str
    state_text: str
    expert_action: str
    expert_observation: str
    alternatives: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    @property
    def known_texts(self) -> tuple[str, ...]:
        """Texts that a rationale may repeat: the state, and every action."""
        return (self.state_text, *self.known_actions)

    @property
    def known_actions(self) -> tuple[str, ...]:
        """Actions that a rationale may name; the expert's also as the sentence "I <action>"."""
        return (self.expert_action, f"I {self.expert_action}", *self.alternatives)


def length(draft: RationaleDraft) -> str:
    """Reject an empty, very short or over-long rationale."""
    words = _word_count(draft.text)
    if words == 0:
        return EMPTY
    if words < MIN_WORDS:
        return f"has {words} words, fewer than {MIN_WORDS}"
    return f"has {words} words, more than {MAX_WORDS}" if words > MAX_WORDS else ""


def label_words(draft: RationaleDraft) -> str:
    """Reject words that only someone who was told the answer would use; that something is a good way is no label."""
    phrase = _first_invisible_match(gate_patterns.LABELS, draft)
    return f"names the label: {phrase!r}" if phrase else ""


def numbered_options(draft: RationaleDraft) -> str:
    """Reject references to a numbered list of options, unless the agent sees one."""
    phrase = _first_invisible_match(gate_patterns.NUMBERED, draft)
    return f"numbers the options: {phrase!r}" if phrase else ""


def outcome_as_seen(draft: RationaleDraft) -> str:
    """Reject an outcome told as known before the action that reveals it; to expect it is no leak, to copy it is."""
    outcome = gate_patterns.ECHO.sub("", draft.expert_observation)
    phrase = _outcome_phrase(draft.text)
    if phrase:
        return f"tells the outcome as seen: {phrase!r}"
    phrase = _copied_phrase(draft, outcome)
    if phrase:
        return f"copies the outcome: {phrase!r}"
    name = _leaked_name(draft, outcome)
    if name:
        return f"names what only the outcome shows: {name!r}"
    claims = gate_patterns.claims(draft.text)
    phrase = _told_words(claims, draft, outcome) or _told_thing(claims, draft, outcome)
    return f"tells the outcome as seen: {phrase!r}" if phrase else ""


def other_action(draft: RationaleDraft) -> str:
    """Reject a rationale that takes an action itself, or that settles on another one than the expert's.

    Sentences are read from the last to the first, until one settles on the expert's action.
    """
    taken = gate_patterns.TAKEN.search(draft.text)
    if taken:
        action = taken.group(1) or taken.group(2) or ""
        return f"takes an action itself: {action.strip()!r}"
    sentences = [text for text in re.split(r"(?<=[.!?])\s+|\n+", draft.text.lower()) if text.strip()]
    for sentences_after, sentence in enumerate(reversed(sentences)):
        expert_mentions = gate_patterns.mentions(sentence, draft.expert_action)
        alternative = _settled_alternative(sentence, draft, expert_mentions, is_last=sentences_after == 0)
        if alternative is not None:
            return f"settles on another action: {alternative.strip()!r}"
        if any(mention.is_committed or not mention.is_declined for mention in expert_mentions):
            return ""
    return ""


def repeated(draft: RationaleDraft) -> str:
    """Reject a text that was written twice, as a whole, in long sentences or word by word."""
    sentences = [gate_patterns.plain(sentence) for sentence in re.split(r"[.!?\n]+", draft.text)]
    for sentence in sentences:
        if len(sentence.split()) > REPEATED_WORDS and sentences.count(sentence) > 1:
            return f"repeats a sentence: {sentence!r}"
    words = gate_patterns.plain(draft.text).split()
    for size in range(REPEATED_WORDS, len(words) // 2 + 1):
        start = _doubled_run(words, size)
        if start is not None:
            return f"repeats words: {' '.join(words[start : start + size])!r}"
    return ""


def grounded(draft: RationaleDraft) -> str:
    """Reject a text that anybody could write who saw nothing of the state, the action or an executed outcome."""
    task, _, shown = draft.state_text.partition("\n") if draft.state_text.startswith("Task:") else ("", "", "")
    told = "\n".join([task, draft.expert_observation, *draft.outcomes])
    return ungrounded(draft.text, draft.expert_action, shown or draft.state_text, told)


Gate = Callable[[RationaleDraft], str]
GATES: dict[str, Gate] = {
    "length": length,
    "label_words": label_words,
    "numbered_options": numbered_options,
    "outcome_as_seen": outcome_as_seen,
    "other_action": other_action,
    "repeated": repeated,
    "grounded": grounded,
}
"""Every gate by name, in the order in which they are asked."""


def first_rejection(draft: RationaleDraft, gates: Sequence[str] = tuple(GATES)) -> tuple[str, str]:
    """Return name and reason of the first gate that rejects, or two empty texts.

    Args:
        draft: the rationale to judge.
        gates: names from `GATES`.
    """
    for name in gates:
        reason = GATES[name](draft)
        if reason:
            return name, reason
    return "", ""


def no_text(text: str, cause: str) -> str:
    """Return why a text is no rationale, whatever gates are asked: it has no word, or its writer did not end it.

    Args:
        text: as it was written.
        cause: why there is no more of it, or empty.

    Returns:
        The reason, or an empty text.
    """
    if _word_count(text):
        return f"{ENDLESS}: {cause}" if cause else ""
    return f"{EMPTY}: {cause}" if cause else EMPTY


def _word_count(text: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in text.split())


def _first_invisible_match(pattern: re.Pattern[str], draft: RationaleDraft) -> str:
    """Return the first match whose words the agent does not see, or an empty text."""
    visible = f" {gate_patterns.plain(draft.state_text)} {gate_patterns.plain(draft.expert_action)} "
    for match in pattern.finditer(draft.text):
        phrase = match.group(0).strip()
        if f" {gate_patterns.plain(phrase)} " not in visible:
            return phrase
    return ""


def _outcome_phrase(text: str) -> str:
    """Return the first phrase that speaks of an outcome as of something that happened, but for one of the past."""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        match = gate_patterns.HAPPENED.search(sentence)
        if match and not gate_patterns.PAST.search(sentence):
            return match.group(0).strip()
    return ""


def _copied_phrase(draft: RationaleDraft, outcome: str) -> str:
    """Return a run of words that a rationale can have from the outcome alone, or an empty text."""
    copied = gate_patterns.word_runs(draft.text, COPIED_WORDS) & gate_patterns.word_runs(outcome, COPIED_WORDS)
    for text in draft.known_texts:
        copied -= gate_patterns.word_runs(text, COPIED_WORDS)
    return " ".join(min(copied)) if copied else ""


def _leaked_name(draft: RationaleDraft, outcome: str) -> str:
    """Return a name that a rationale can have from the outcome alone, as the number of a record, or an empty text."""
    leaked = gate_patterns.record_names(draft.text) & gate_patterns.record_names(outcome)
    for text in draft.known_texts:
        leaked -= gate_patterns.record_names(text)
    return min(leaked) if leaked else ""


def _told_words(claims: Sequence[str], draft: RationaleDraft, outcome: str) -> str:
    """Return words of a claim that the outcome has and nothing known says, or an empty text."""
    # "drawer 1" and "drawer 2" differ at first; then a claim about any drawer is looked for.
    for keep_numbers in (True, False):
        revealed = _revealed_statements(draft, outcome, keep_numbers)
        for claim in claims:
            told = revealed & gate_patterns.statements(claim, keep_numbers).keys()
            if told:
                return " ".join(min(told)).replace("_", " ")
    return ""


def _revealed_statements(draft: RationaleDraft, outcome: str, keep_numbers: bool) -> set[tuple[str, ...]]:
    """Return the statements of the outcome that no known text makes, in these words or with the same meaning."""
    known_statements: set[tuple[str, ...]] = set()
    known_meanings: set[tuple[str, ...]] = set()
    for text in draft.known_texts:
        statements = gate_patterns.statements(text, keep_numbers)
        known_statements.update(statements.keys())
        known_meanings.update(statements.values())
    return {
        statement
        for statement, meaning in gate_patterns.statements(outcome, keep_numbers).items()
        if statement not in known_statements and meaning not in known_meanings
    }


def _told_thing(claims: Sequence[str], draft: RationaleDraft, outcome: str) -> str:
    """Return a phrase of a claim that tells a thing which only the outcome shows, or an empty text."""
    state_text = draft.state_text
    # A thing that the task names is not there yet; a thing that the rest of the state shows is.
    shown = state_text.partition("\n")[2] if state_text.startswith("Task:") else state_text
    new_words = gate_patterns.content(outcome) - gate_patterns.content(" ".join([shown, *draft.known_actions]))
    unnamed_words = new_words - gate_patterns.content(state_text)
    visible = f" {gate_patterns.plain(state_text)} "
    for claim in claims:
        phrase = gate_patterns.claim_phrase(gate_patterns.IS_THERE, new_words, claim)
        phrase = phrase or gate_patterns.claim_phrase(gate_patterns.IS_SO, unnamed_words, claim)
        if phrase and f" {gate_patterns.plain(phrase)} " not in visible:
            return phrase
    return ""


def _settled_alternative(
    sentence: str, draft: RationaleDraft, expert_mentions: Sequence[gate_patterns.Mention], is_last: bool
) -> str | None:
    """Return the alternative that a sentence settles on, or None.

    Args:
        sentence: one of the rationale, in lower case.
        draft: the rationale.
        expert_mentions: places where the sentence names the expert's action.
        is_last: whether the rationale ends with it: an action that is named there, and is not turned down, is meant.
    """
    expert_is_committed = any(mention.is_committed for mention in expert_mentions)
    for alternative in draft.alternatives:
        for mention in gate_patterns.mentions(sentence, alternative, draft.expert_action):
            ends_with_it = is_last and not expert_mentions and not mention.is_declined
            if ends_with_it or (mention.is_committed and not expert_is_committed):
                return alternative
    return None


def _doubled_run(words: Sequence[str], size: int) -> int | None:
    """Return the index where the first run of `size` words begins that directly follows on itself, or None."""
    for start in range(len(words) - 2 * size + 1):
        middle = start + size
        # The first words are compared alone: it saves most of the slices.
        if words[start] == words[middle] and words[start:middle] == words[middle : middle + size]:
            return start
    return None
