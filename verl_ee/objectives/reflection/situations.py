"""Self-reflection: a rationale for the expert's action, grounded in outcomes that were really executed.

A writer sees the state, the action and what every executed action led to; the training example has the state alone as
its input, and the rationale followed by the expert's action as its target (paper, section 4.3 and equation 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.store import ExecutedBranch
from verl_ee.prompts.actions import canonical
from verl_ee.prompts.state import State
from verl_ee.prompts.text import Message, state_text

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
    outcome: ExecutedBranch
    alternatives: tuple[ExecutedBranch, ...] = ()

    @property
    def transitions(self) -> tuple[str, ...]:
        """Keys of the executed transitions that a rationale rests on."""
        return (self.outcome.transition, *(outcome.transition for outcome in self.alternatives))

    @property
    def prompt(self) -> list[Message]:
        """Messages that ask a language model for the rationale."""
        return writer_prompt(self)


def situations(
    trajectories: Sequence[ExpertTrajectory],
    outcomes: Iterable[ExecutedBranch],
    history_length: int,
    k: int | None = None,
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
    by_state: dict[tuple[int, int], list[ExecutedBranch]] = {}
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
