"""Self-reflection: a rationale for the expert's action, grounded in outcomes that were really executed.

A writer sees the state, the action and the outcome of every executed action; the training example has the state alone
as its input, and the rationale followed by the expert's action as its target (paper, section 4.3 and equation 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl_ee.envs import CanonicalForm, ExpertTrajectory, canonical_form
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.branch_selection import chosen_alternatives
from verl_ee.prompts.format import Message
from verl_ee.prompts.state import State
from verl_ee.prompts.state_text import state_text

WRITER_SYSTEM = "You think aloud before you act. You write only the thought, in plain sentences, in the first person."
WRITER_INSTRUCTION = (
    "Write the thought that comes before the action, in one paragraph of 30 to 120 words. Say what matters in the "
    "situation for the task, why other ways to go on help less, and what you expect from what is done next. You have "
    "not acted yet: speak of outcomes as expected, never as seen. Do not number anything, do not mention choices that "
    "were offered, and do not write the action as a line of its own. End by settling on what is done."
)


@dataclass(frozen=True)
class Situation:
    """A state of an expert trajectory, with everything that the writer of a rationale may know.

    Attributes:
        ref: position of the state.
        state: all that the agent sees.
        expert_action: the action that the expert took, as the expert wrote it.
        expert_branch: the execution of that action.
        alternatives: executions of other actions.
        solved: whether the task was solved in the state; None: not known.
    """

    ref: StateRef
    state: State
    expert_action: str
    expert_branch: ExecutedBranch
    alternatives: tuple[ExecutedBranch, ...] = ()
    solved: bool | None = None

    @property
    def key(self) -> StateRef:
        """Key of the rationale among all of a file."""
        return self.ref

    @property
    def transitions(self) -> tuple[str, ...]:
        """Keys of the executed transitions that a rationale rests on."""
        return (self.expert_branch.transition, *(branch.transition for branch in self.alternatives))

    @property
    def prompt(self) -> list[Message]:
        """Messages that ask a language model for the rationale."""
        return writer_prompt(self)


def situations(
    trajectories: Sequence[ExpertTrajectory],
    branches: Iterable[ExecutedBranch],
    history_length: int | None,
    k: int | None = None,
    balanced: bool = False,
) -> list[Situation]:
    """Return the states whose expert action was executed, in the order of the file.

    Args:
        trajectories: trajectories of the expert file.
        branches: executed branches; a state without the expert's own has no outcome to rest on.
        history_length: past turns in a state.
        k: at most so many alternatives each, none of them the expert's own action; 0 grounds a rationale in the
            expert's outcome alone, None takes all.
        balanced: choose these k from each class of outcome in turn (see `chosen_alternatives`).

    Raises:
        ExampleError: if no expert transition was executed.
    """
    by_state: dict[StateRef, list[ExecutedBranch]] = {}
    for branch in branches:
        by_state.setdefault(branch.ref, []).append(branch)
    states = [expert_states(trajectory, history_length) for trajectory in trajectories]
    result = []
    for ref in sorted(by_state, key=lambda ref: (ref.trajectory, ref.step)):
        expert_branch = next((branch for branch in by_state[ref] if branch.proposer == EXPERT), None)
        if expert_branch is None:
            continue
        trajectory = trajectories[ref.trajectory]
        step = trajectory.steps[ref.step]
        others = _alternatives(by_state[ref], step.action, canonical_form(trajectory.environment))
        state = states[ref.trajectory][ref.step]
        alternatives = chosen_alternatives(others, k, state.observation, balanced)
        result.append(Situation(ref, state, step.action, expert_branch, tuple(alternatives), step.solved))
    if not result:
        raise ExampleError(
            "No state has an executed expert transition, so there is nothing to reflect on. "
            "Collect with include_expert_transition=true."
        )
    return result


def writer_prompt(situation: Situation) -> list[Message]:
    """Return the messages that ask a language model for a rationale.

    Outcomes are given for private judgement only; the options are named inline, not numbered; the action is called
    what is done, not what was chosen: each of these keeps a leak out that the authors found in their own data.
    """
    expert_observation = situation.expert_branch.outcome.observation
    lines = [state_text(situation.state), "", f"What is done next: {situation.expert_action}"]
    lines.append(f"For your judgement only, not to be told: it leads to: {expert_observation}")
    if situation.alternatives:
        lines.append("For your judgement only, what else could be done and what it would lead to:")
        lines += [f"{branch.outcome.action}: {branch.outcome.observation}" for branch in situation.alternatives]
    lines += [
        "",
        WRITER_INSTRUCTION,
    ]
    return [{"role": "system", "content": WRITER_SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


def _alternatives(
    branches: Iterable[ExecutedBranch], expert_action: str, canonical: CanonicalForm
) -> list[ExecutedBranch]:
    """Return the branches with another action than the expert's."""
    expert_form = canonical(expert_action)
    return [branch for branch in branches if canonical(branch.outcome.action) != expert_form]
