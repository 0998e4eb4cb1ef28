"""Self-reflection: a rationale for the expert's action, grounded in outcomes that were really executed.

A writer sees the state, the action and what every executed action led to; the training example has the state alone as
its input, and the rationale followed by the expert's action as its target (paper, section 4.3 and equation 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.rendering import Message, State, canonical, state_text
from verl_ee.experience.states import expert_states
from verl_ee.experience.store import Outcome
from verl_ee.objectives.gates import GATES, Rationale, judge
from verl_ee.objectives.phrases import content, plain
from verl_ee.objectives.texts import Writer, ask

SHOWN = 2
"""Other actions that the template speaks of: a short rationale leaves more weight to the action."""
WRITER_SYSTEM = "You think aloud before you act. You write only the thought, in plain sentences, in the first person."


@dataclass(frozen=True)
class Situation:
    """What a writer may know of a state.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
        state: what the agent sees.
        action: the expert's action.
        outcome: what it led to.
        alternatives: what the other actions led to.
    """

    trajectory: int
    step: int
    state: State
    action: str
    outcome: Outcome
    alternatives: tuple[Outcome, ...] = ()

    @property
    def transitions(self) -> tuple[str, ...]:
        """Keys of the executed transitions that a rationale rests on."""
        return (self.outcome.transition, *(outcome.transition for outcome in self.alternatives))

    @property
    def prompt(self) -> list[Message]:
        """Messages that ask a language model for the rationale."""
        return writer_prompt(self)


@dataclass(frozen=True)
class Reflection:
    """A rationale and what became of it.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
        text: the rationale.
        writer: who wrote it.
        transitions: keys of the transitions that it rests on.
        gate: the gate that rejected it, or empty.
        reason: why.
    """

    trajectory: int
    step: int
    text: str
    writer: str
    transitions: tuple[str, ...]
    gate: str = ""
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it may be learned from."""
        return not self.gate


def situations(
    trajectories: Sequence[ExpertTrajectory], outcomes: Iterable[Outcome], history_length: int, k: int | None = None
) -> list[Situation]:
    """Return the states whose expert action was executed, in the order of the file.

    Args:
        trajectories: of the expert file.
        outcomes: executed branches; without the expert's own a state has no outcome to rest on.
        history_length: past turns in a state.
        k: at most so many alternatives each, none of them the expert's own action; 0 grounds a rationale in the
            expert's outcome alone, None takes all.

    Raises:
        ExampleError: if no expert transition was executed.
    """
    by_state: dict[tuple[int, int], list[Outcome]] = {}
    for outcome in outcomes:
        by_state.setdefault((outcome.trajectory, outcome.step), []).append(outcome)
    states = [expert_states(trajectory, history_length) for trajectory in trajectories]
    found = []
    for (index, step), branches in sorted(by_state.items()):
        expert = next((branch for branch in branches if branch.proposer == EXPERT), None)
        if expert is not None:
            action = trajectories[index].steps[step].action
            others = [branch for branch in branches if canonical(branch.action) != canonical(action)]
            found.append(Situation(index, step, states[index][step], action, expert, tuple(others[:k])))
    if not found:
        raise ExampleError(
            "No state has an executed expert transition, so there is nothing to reflect on. "
            "Collect with include_expert_transition=true."
        )
    return found


def reflect(
    found: Sequence[Situation], writer: Writer[Situation], gates: Sequence[str] = tuple(GATES)
) -> list[Reflection]:
    """Have rationales written, and ask the gates about each; a situation that the writer left out has none."""
    return [judged(situation, text, writer.name, gates) for situation, text in ask(found, writer)]


def judged(situation: Situation, text: str, writer: str, gates: Sequence[str]) -> Reflection:
    """Ask the gates about a rationale, and return what becomes of it."""
    rationale = Rationale(
        text,
        state_text(situation.state),
        situation.action,
        situation.outcome.observation,
        tuple(outcome.action for outcome in situation.alternatives),
    )
    gate, reason = judge(rationale, gates)
    where = (situation.trajectory, situation.step)
    return Reflection(*where, text, writer, situation.transitions, gate, reason)


def counts(reflections: Iterable[Reflection]) -> dict[str, int]:
    """Return how many were accepted, and how many each gate rejected."""
    found = Counter(reflection.gate or "accepted" for reflection in reflections)
    return {name: found[name] for name in ("accepted", *GATES) if found[name]}


def writer_prompt(situation: Situation) -> list[Message]:
    """Return the messages that ask a language model for a rationale.

    Outcomes are given for private judgement only; the options are named inline, not numbered; the action is called
    what is done, not what was chosen: each of these keeps a leak out that the authors found in their own data.
    """
    lines = [state_text(situation.state), "", f"What is done next: {situation.action}"]
    lines.append(f"For your judgement only, not to be told: it leads to: {situation.outcome.observation}")
    if situation.alternatives:
        lines.append("For your judgement only, what else could be done and what it would lead to:")
        lines += [f"{outcome.action}: {outcome.observation}" for outcome in situation.alternatives]
    lines += [
        "",
        "Write the thought that comes before the action, in one paragraph of 30 to 120 words. Say what matters in the "
        "situation for the task, why other ways to go on help less, and what you expect from what is done next. You "
        "have not acted yet: speak of outcomes as expected, never as seen. Do not number anything, do not mention "
        "choices that were offered, and do not write the action as a line of its own. End by settling on what is done.",
    ]
    return [{"role": "system", "content": WRITER_SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


class TemplateWriter:
    """Writes by rule: for models too small to write, and for tests.

    It compares what every executed action led to with what the agent has seen, and with what the task names; it tells
    of outcomes only as expected.
    """

    name = "template"
    stop: ExampleError | None = None

    def write(self, situations: Sequence[Situation]) -> Sequence[str]:
        """Return a few plain sentences per situation."""
        return [_by_rule(situation) for situation in situations]


def _by_rule(situation: Situation) -> str:
    state, named = situation.state, content(situation.state.task)
    here = named & content(state.observation)
    sentences = [f"I see {_list(state.task, here) or 'nothing'} of the task."]
    drawbacks: dict[str, str] = {}
    for outcome in situation.alternatives:
        drawbacks.setdefault(_drawback(situation, outcome), outcome.action)
    sentences += [f"'{action}' {drawback}." for drawback, action in list(drawbacks.items())[:SHOWN]]
    return " ".join([*sentences, _prospect(situation, here, named)])


def _drawback(situation: Situation, outcome: Outcome) -> str:
    """Return why an action other than the expert's is not taken, as far as its outcome shows it."""
    state = situation.state
    if not outcome.valid:
        return "would be refused"
    if outcome.done and not situation.outcome.done:
        return "would end it too early"
    if outcome.observation in _seen(state):
        return "would show nothing new"
    if content(state.task) & content(outcome.observation) <= content(state.observation):
        return "would add nothing to it"
    return "can wait"


def _prospect(situation: Situation, here: set[str], named: set[str]) -> str:
    """Return what is expected of the expert's action, as far as its outcome bears it out."""
    state, action, outcome = situation.state, f"'{situation.action}'", situation.outcome
    if outcome.done:
        return f"{action} should end the task."
    gained = (named & content(outcome.observation)) - here
    if gained:
        return f"{action} may bring me to {_list(state.task, gained)}."
    if named & content(situation.action):
        return f"{action} should help with {_list(state.task, named & content(situation.action))}."
    return f"{action} {'should bring me on' if outcome.observation in _seen(state) else 'may show me more'}."


def _seen(state: State) -> set[str]:
    return {state.observation, *(turn.observation for turn in state.history)}


def _list(task: str, words: set[str]) -> str:
    """Return `words` in the order in which the task has them."""
    return ", ".join(word for word in dict.fromkeys(plain(task).split()) if word in words)
