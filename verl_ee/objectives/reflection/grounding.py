"""Words by which a rationale shows that its writer saw the situation: names of things in it, not words of everyday."""

from __future__ import annotations

import re

from verl_ee.objectives.reflection import gate_patterns
from verl_ee.objectives.reflection.situations import WRITER_INSTRUCTION, WRITER_SYSTEM

NAMED = 2
"""Names of its situation that a rationale has, where there are so many."""
SHORT = 25
"""Words of a rationale that needs only one: in so few hardly any name stands by chance."""
_LETTERS = r"[^\W\d_]"
_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff]"
"""Letters of scripts that put no space between words."""
_WORD = re.compile(rf"\w*\d\w*|{_LETTERS}+(?:['\u2019]{_LETTERS}+)*")
_ENDINGS = ("ing", "ed", "es", "s", "e", "ly")
_EVERYDAY = """
a about above accept according account achieve across act acted acting action acts actually adapt add added adding
additionally adds advance advantage affect after again against agent ago ahead aim aimed aiming aims all allow alone
along already also alternatively although always am among an analyse analyze and another answer any anyone anything
anyway appear approach appropriate are area aren't argument around as ask asked asking asks aspect assess assist
assistant assume at attempt attention aware away back bad base basic be became because become been before began begin
begun behind being belief believe benefit best better between beyond big bigger biggest bit bits both bring but by call
came can can't cannot care careful case cause certain challenge chance change check choice choose chose chosen clear
close come command common complete concern confident confuse consequence consider context continue control correct
could couldn't count course create current data day days deal decide decision deep definite depend describe desire
detail determine did didn't differ different difficult direct direction do does doesn't doing don't done doubt down due
during each early easily easy effect effective effort either else end ended ending ends enough ensure environment
especially essential even ever every everyone everything exact examine example excite expect experience explain explore
express eye eyes fact fail far fast feel felt few figure final finally find fine finish first firstly fits focus follow
for form forward found from full further furthermore future gain gave general get gets getting give given go goal goes
going good got gotten great group guess guide had hand happen happily happy hard has have haven't having he he's hear
heard hello help hence her here herself hey hi high him himself his hold hope how however hows human i i'd i'll i'm
i've idea if imagine immediate importance important impossible improve in include indeed inform information inside
instead instruction intend interest into is isn't issue it it's item its itself job jobs journey just keep kept key
keys kind knew know knowledge known last late later lead learn least leave less let let's lets letting level life like
likely likewise line list listen little live long look lose lot lots luckily made main make manage many matter may
maybe me mean meaning mention message method might mind mine mistake moment more moreover most mostly motivate move
much must my myself name near necessary need neither never new next nice no none nor normal not nothing now number
object objective obvious odds of off offer often oh ok okay old on once one only onto opinion opportunity option or
other otherwise ought our ourselves out outcome over overall own paid paragraph part particular past path pay paying
pays people perfect perform perhaps person perspective pick place plain plan please point position positive possibility
possible possibly potential power practice precise prefer prepare present pretty previous probably problem proceed
process progress project proper provide purpose put puts putting quality question quick quite rather reach read ready
real realise realize really reason recall receive recommend reflect regard relate relevant rely remain remember report
represent request require resource respond response responsibility rest result review reward right risk role run
running runs safe said same save say saying says scenario search second secondly see seeing seek seeking seem seen sees
select sense sentence set sets setting settle several shall share she she's short should shouldn't show side sign
significant similar simple simply since single situation skill small so solution solve some someone something soon
sorry sort sought speak specific spend spoke spoken stand start state statement stay step still stop strategy stress
strong stuck subject succeed success successful such suggest suit support suppose sure surprise system take taken
taking talk talks target task team tell tells tend term test text than thank that that's the their them themselves then
there there's therefore these they they're thing think third this those though thought three through throughout thus
time to today together told too tool top topic total toward towards tried tries trust truth try trying turn two type
uncertain under understand understood unless until up upon us use used useful user uses using usual value various
verify very via view visit voice wait walk want wants was way ways we we're well went were what what's whatever when
where whether which while who whole whom whose why whys will wise wish with within without won't word work world worry
would wouldn't write written wrong wrote year years yes yet you you're your yourself
"""
"""Words that any text may have, whatever its writer saw."""


def ungrounded(text: str, action: str, shown: str, told: str) -> str:
    """Return why a rationale is not grounded in its situation, or an empty text.

    It is, if it names the action, or two things of the situation (a short one: one thing), one of them of what is seen
    or done now. Where a situation has no names, nothing is asked for.

    Args:
        text: the rationale.
        action: the action that it should lead to.
        shown: what the agent sees, without the task.
        told: the task, and the outcomes of the actions that were executed.
    """
    if _names_action(text, action):
        return ""
    near = names(f"{shown}\n{action}")
    # In a world of numbers and letters these are the names.
    shortest = 3 if len(near) >= NAMED else 1
    near, said = names(f"{shown}\n{action}", shortest), names(text, shortest)
    known = near | names(told, shortest)
    found = sorted(said & known)
    needed = min(1 if len(text.split()) <= SHORT else NAMED, len(known))
    if len(found) >= needed and (said & near or not near):
        return ""
    if not found:
        return "names nothing of the state, the action or an outcome"
    quoted = " and ".join(map(repr, found[:NAMED]))
    if said & near:
        return f"names nothing of what is seen or done but {quoted}"
    return f"names only {quoted}, of the task or an outcome, and nothing of what is seen or done"


def names(text: str, shortest: int = 3) -> set[str]:
    """Return the names in a text, without their endings: specific words, and all that has a digit.

    Args:
        text: any.
        shortest: letters of a word; a single digit is a name only if this is 1.
    """
    found = set()
    for word in _WORD.findall(text.lower()):
        has_digit = any(map(str.isdigit, word))
        if word not in _GENERIC and len(word) >= (min(shortest, 2) if has_digit else shortest):
            found.add(word if has_digit else _stem(word))
    for run in re.findall(rf"{_UNSPACED}+", text):
        found |= {run[start : start + 2] for start in range(max(1, len(run) - 1))}
    return found


def _names_action(text: str, action: str) -> bool:
    """Return whether a text names an action in full: in quotes, or by words of which one is specific."""
    said, done = f" {gate_patterns.plain(text)} ", gate_patterns.plain(action)
    if done and re.search(rf"['\"`\u2018\u201c]{re.escape(action.lower())}['\"`\u2019\u201d]", text.lower()):
        return True
    return " " in done and bool(names(action)) and (f" {done} " in said or bool(gate_patterns.mentions(said, action)))


def _stem(word: str) -> str:
    """Return a word without its endings, so that a thing and several of it, or to do it and doing it, are the same."""
    word, before = word.replace("\u2019", "'").removesuffix("'s"), ""
    while word != before:
        before = word
        ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), "")
        word = word.removesuffix(ending)
        if word.endswith("y"):
            word = f"{word[:-1]}i"
        if len(word) > 3 and word[-1] == word[-2]:
            word = word[:-1]
    return word


def _forms(word: str) -> set[str]:
    """Return the regular forms of a word: several of it, doing it, done; of a short one, which has few, itself."""
    if len(word) < 4:
        return {word}
    root = word.removesuffix("e")
    root = f"{word[:-1]}i" if word.endswith("y") else root
    return {
        word,
        *(f"{word}{ending}" for ending in ("s", "es", "ed", "ing", "ly", "'s", word[-1] + "ing", word[-1] + "ed")),
        *(f"{root}{ending}" for ending in ("es", "ed", "ing", "ly")),
    }


_GENERIC = frozenset(
    form for word in _WORD.findall(f"{_EVERYDAY} {WRITER_SYSTEM} {WRITER_INSTRUCTION}".lower()) for form in _forms(word)
)
"""Everyday words, and those of the instruction that a writer gets: to repeat them shows nothing."""
