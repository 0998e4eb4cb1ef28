"""Patterns of the gates: words that are a leak, words that make it none, and the statements of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_ACT = r"(?:course of action|action|option|choice|move|step|decision|command)"
_FINE = r"(?:correct|right|best|optimal|ideal)"
_GIVEN = r"(?:chosen|selected|preferred|recommended|suggested|labell?ed|demonstrated|gold(?:en)?|oracle)"
_MANY = r"(?:two|three|four|five|six|seven|eight|nine|ten|\d+)"
_OPTION = r"(?:action|option|alternative|choice|candidate|possibility)"
_NTH = r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|last)"

LABELS = _any(
    # A rationale that speaks of no expert, or of the advice of one, does not tell whose action is learned.
    r"\b(?<!no )(?<!not an )experts?\b(?!-| (?:in|on|at|level|advice|help|support|review))(?:'s)?(?: \w+)?",
    r"\b(?:ground|gold)[- ](?:truth|standard)\b|\b(?:true|gold|action) labels?\b|\blabell?ed as (?:the )?" + _FINE,
    rf"\b{_FINE} (?:next |possible |available |overall |immediate )?{_ACT}\b|\b{_FINE} thing to do\b",
    rf"\b{_FINE} answer (?:here |now )?is to\b",
    rf"\b{_GIVEN} (?:next )?(?:{_ACT}|one)\b|\b(?:chosen|selected) over\b",
    rf"\bthe (?:given|provided|reference|target) {_ACT}\b",
    rf"\b{_ACT} (?:here |now )?is (?:\w+ly )?(?:the )?{_FINE}\b(?! \w+ing)|\b(?:is|be) (?:\w+ly )?optimal\b",
    rf"\b{_ACT} (?:that |which )?(?:I was |we were |(?:is|was|has been) )?(?:chosen|selected|given|provided|taken)\b",
    r"\bjustif(?:y|ies|ied|ying) (?:the|this|that|why) (?:\w+ )?(?:action|choice|decision|move)\b",
    r"\b(?:the demonstrations?|demonstrators?|demonstration (?:data|trajectory)|walkthroughs?|answer keys?)\b",
    rf"\bthe agent(?:'s)? (?:takes?|took|chooses|chose|decides|decided|{_ACT})\b",
    # An alternative to something is a word of the world; the alternatives are what a writer was shown.
    rf"\balternative {_ACT}s?\b|\b(?:the|these|those|other|both|all|any|than|to) alternatives\b",
    r"\b(?:the|this|that|each|every|either) alternative(?= (?:of|to|is|was|would|leads?|results?)\b|[,.;:])",
)
"""Words that name an action as the one to be learned, or the others as those that are not."""

NUMBERED = _any(
    rf"\b{_OPTION}s? (?:#|no\.? ?|number )?\d+\b",
    rf"\b{_OPTION} (?:number )?(?:one(?! (?:has|can|could|would))|two|three|four)\b|\b{_OPTION} \(?(?-i:[A-H])\b(?!')",
    rf"\bthe {_NTH} (?:option|alternative|choice|candidate)\b",
    r"\bthe (?:second|third|fourth|fifth) (?:possible |listed |available )?action\b(?! I\b)",
    rf"\b(?:the|these|those|all|of) {_MANY} (?:other )?(?:options|alternatives|choices|candidates)\b",
    r"(?:^|\n)\s*(?:\(?\d+[.)]|[-*\u2022])\s+\S[^\n]{,30}|[:;,.]\s*\(?1\)\s.*?\(?2\)\s",
)
"""References into a list of options."""

HAPPENED = _any(
    r"\bresulted in\b|\bhas revealed\b|\brevealed that\b|\bturned out\b|\bas (?:the )?(?:result|outcome) shows?\b",
    r"\bthe (?:outcome|resulting state|next state|next observation|result of (?:this|that|the|\w+ing)\b[^.]*?) (?:is"
    r"|was|shows?|showed|confirms?|confirmed|reveals?|revealed)\b"
    r"(?! (?:likely|expected|probably|unknown|uncertain|not)\b)",
    r"\bafter (?:doing|taking|trying) (?:this|it|that)(?: action)?,? I (?:saw|see|found|find|noticed?|have|hold)\b",
    r"\bwhich (?:led|leads) to the (?:observation|message|response)\b",
    r"\bI (?:already )?(?:saw|know) what (?:happens|happened)\b",
)
"""Words that speak of an outcome as of something that happened."""

PAST = _any(r"\b(?:earlier|previous|previously|last|before|so far|ago|attempts?|searches)\b")
"""Words that make it an outcome of the past."""

UNREAL = _any(
    r"\b(?:expect(?:s|ed|ing)?|anticipate|should|would|will|might|may|could|hope(?:fully)?|likely|probably|perhaps)\b",
    r"\b(?:possible|possibly|maybe|presumably|if|whether|unless|until|guess|suspect|assume|imagine|predict|think)\b",
    r"\b(?:believe|usually|often|typically|generally|normally|tends?|needs?|must|wants?|requires?|asks?|once)\b",
    r"\b(?:so that|ha(?:s|ve) to|not|no|never|none|nothing|neither|without|cannot)\b|'ll\b|n't\b",
)
"""Words after which something is expected, wished or denied, and not told as it is."""

REASON = re.compile(r"[.!?;]+(?:\s|$)|\n|\b(?:because|since|now that|given that|seeing that)\b|, as\b", re.IGNORECASE)
"""The end of an expectation: the next sentence, or the reason for it."""

ECHO = re.compile(
    r"(?:^|(?<=[.!?] ))you (?!see|hold|have|are|find|notice|carry|now|can)[^.\n]*", re.IGNORECASE | re.MULTILINE
)
"""The part of an outcome that repeats the action: that you open the drawer."""

IS_THERE = (
    r"\b(?:(?:I|we|you)(?:'ve| have)? (?:now |can |also |just |already )?(?:see|saw|find|found|noticed?|spot|spotted)"
    r"|has|holds?|contains?|reveals?|there (?:is|are|was|were)|there's"
    r"|(?:in|on|inside) (?:\w+ ){1,3}(?:is|are|lies|lie|sits|sit)(?! (?:where|what|how)))"
)
"""Verbs that say that something is there."""

IS_SO = r"\b(?:is|are|was|were|has|have|comes? in|offers?|includes?|says?|lists?|shows?|costs?|gives?|reads?)"
"""Verbs that say how something is."""

TAKEN = re.compile(r"^\W*(?:(?:my|the|next|final) )*action\W*:\W*(.*)|<action>\s*([^<]*)", re.IGNORECASE | re.MULTILINE)
"""An action that is taken."""

DECLINED = _any(
    r"\b(?:not|never|no|nothing|rather than|instead of|without|before|than|unlike|over|avoid|later|only then|once)\b",
    r"\b(?:afterwards|after|could|might|may|if|whether|although|though|while|tempting|leave|skip)\b|n't\b",
)
"""Words before an action that is not done now."""

FUTILE = _any(
    r"\b(?:not|never|nothing|no|only|useless|pointless|wastes?d?|later|wait|neither|less|worse|farther|too|risks?)\b",
    r"\b(?:unnecessary|premature|cannot|fails?|already|costs?)\b|n't\b",
    r"\b(?:would|could|might) (?!.*\b(?:best|better|most|helps?|sense|quick\w*|fast\w*|closer|ideal|progress|wise)\b)",
)
"""Words after an action that is not done: the reason."""

COMMITTED = _any(
    r"\b(?:i|we|let me|let's|i'll|we'll|i'd|i'm)(?: (?:will|shall|should|would|must|now|just|simply|instead|rather"
    r"|still|then|first|next|better|best|am|going|to|want|need|have|prefer|choose|decide|opt|settle|go|for|on|with|ahead|and"
    r"|plan|intend|try|do|call|use|run|check|my))*$"
)
"""Words directly before an action that is done now."""

_CLAUSE_END = r"[,;:()\u2014]|\b(?:and|but|so|therefore|thus|hence)\b"
_FILLERS = {"a", "an", "the", "now", "just", "already", "that", "can", "also", "still"}
_SAME = {"you": "i", "your": "my", "i'm": "i"}
_LIGHT = _FILLERS | {
    *("is", "are", "was", "were", "be", "been", "being", "am", "will", "would"),
    *("have", "has", "had", "do", "does", "did", "see", "seen"),
    *("i", "me", "my", "you", "your", "it", "its", "he", "she", "they", "them", "their", "we", "our", "one", "two"),
    *("this", "these", "those", "there", "here", "some", "any", "what", "which", "who", "where", "when"),
    *("in", "on", "at", "of", "to", "from", "with", "into", "onto", "for", "by", "under", "over", "inside"),
    *("and", "or", "but", "so", "if", "not", "no", "nothing", "as", "then", "than"),
}
"""Words that carry no meaning of their own."""


@dataclass(frozen=True)
class Mention:
    """A place where a sentence names an action.

    Attributes:
        is_committed: whether the sentence says that the action is done now.
        is_declined: whether it says that the action is not done.
    """

    is_committed: bool
    is_declined: bool


def plain(text: str) -> str:
    """Return the words of a text, in lower case."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def content(text: str) -> set[str]:
    """Return the words that carry a meaning."""
    return set(re.findall(r"[a-z']{3,}", text.lower())) - _LIGHT


def word_runs(text: str, size: int) -> set[tuple[str, ...]]:
    """Return every run of `size` words."""
    words = plain(text).split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def record_names(text: str) -> set[str]:
    """Return the words that nobody can guess, as the number of a record: letters and digits together."""
    return set(re.findall(r"\b(?=\w*[a-z])(?=\w*\d)\w{4,}\b", text.lower()))


def statements(text: str, keep_numbers: bool) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the statements of a text, whole clauses and runs of three words, each with its words that carry a meaning.

    Args:
        text: any.
        keep_numbers: whether "drawer 1" and "drawer 2" differ.
    """
    meanings: dict[tuple[str, ...], tuple[str, ...]] = {}
    lowered = re.sub(r" (\d+)\b", r"_\1" if keep_numbers else "", text.lower())
    for clause in re.split(r"[^\w '-]+|\b(?:and|but|so|which|where)\b", lowered):
        words = tuple(_SAME.get(word, word) for word in clause.split() if word not in _FILLERS)
        _add_statement(meanings, words, min_meaning=1)
        for start in range(len(words) - 2):
            _add_statement(meanings, words[start : start + 3], min_meaning=2)
    return meanings


def _add_statement(meanings: dict[tuple[str, ...], tuple[str, ...]], words: tuple[str, ...], min_meaning: int) -> None:
    """Add a run of three or more words, if enough of them carry a meaning."""
    meaning = tuple(word for word in words if word not in _LIGHT)
    if len(words) > 2 and len(meaning) >= min_meaning:
        meanings[words] = meaning


def claims(text: str) -> list[str]:
    """Return the parts of a text that tell something as it is: each ends where something is expected, or denied."""
    return [UNREAL.split(part)[0] for part in REASON.split(text)]


def claim_phrase(verbs: str, words: Iterable[str], claim: str) -> str:
    """Return the phrase of a claim in which one of `words` follows on one of `verbs`, or an empty text."""
    nouns = "|".join(sorted(map(re.escape, words)))
    if not nouns:
        return ""
    match = re.search(rf"{verbs} (?:[\w'-]+ ){{0,2}}(?:{nouns})(?:e?s)?\b", claim, re.IGNORECASE)
    return match.group(0) if match else ""


def mentions(sentence: str, action: str, other_action: str = "") -> list[Mention]:
    """Return each mention of an action in a sentence, from its start to its end.

    Args:
        sentence: any.
        action: the action to look for; "open drawer 1" is not named by "open drawer 10".
        other_action: another action; the name of a tool that both call names neither.
    """
    pattern = _mention_pattern(action, other_action)
    clauses = [plain(clause) for clause in re.split(_CLAUSE_END, sentence)]
    result = []
    for index, clause in enumerate(clauses):
        for match in re.finditer(pattern, clause):
            before = clause[: match.start()].strip()
            after = " ".join([clause[match.end() :], *clauses[index + 1 :]])
            is_declined_before = bool(DECLINED.search(before))
            is_committed = not is_declined_before and bool(COMMITTED.search(before))
            # One word, as "look", is also a word of any sentence.
            if is_committed or " " in match.group(0) or _tool_name(action):
                result.append(Mention(is_committed, is_declined_before or bool(FUTILE.search(after))))
    return result


def _mention_pattern(action: str, other_action: str) -> str:
    """Return how an action is named in a sentence: a tool by its name, unless the other action calls it too."""
    tool = _tool_name(action)
    first, *rest = plain(tool if tool and tool != _tool_name(other_action) else action).split() or [""]
    verb = re.escape(first.removesuffix("e")) + r"(?:e?s?|\w?ing)"
    if not rest:
        return rf"\b{verb}\b" if tool else rf"\b{verb}(?= (?:now|first|here|again|instead|around)$|$)"
    filler = r" (?:(?:the|a|an|my|for|on|in|to|button) )?"
    return filler.join([rf"\b{verb}", *map(re.escape, rest)]) + r"\b"


def _tool_name(action: str) -> str:
    """Return the name of the tool that an action calls, or an empty text."""
    match = re.match(r"([A-Za-z]\w+)\(", action) or re.search(r'"name": ?"([\w.]+)"', action)
    return match.group(1) if match else ""
