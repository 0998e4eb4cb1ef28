"""Asks a proposer for alternatives in batches of states, while workers execute what it proposed before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from verl_ee.errors import BranchError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.collecting.plan import CollectionPlan
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.proposers import ProposalBatch, ProposalRequest, Proposer
from verl_ee.experience.state_ref import StateRef
from verl_ee.prompts.actions import canonical

BATCH_STATES = 64
"""States whose alternatives are proposed together."""
BATCHES = 2
"""Batches under way at a time, so that the proposer need not wait for the driver."""


class ProposalQueue:
    """Decides the alternatives of every state.

    Attributes:
        decided: trajectories that need no proposer.
        states: states that do.
        tokens: read and written by the proposer's language model.
    """

    def __init__(self, plan: CollectionPlan, proposer: Proposer | None, history_length: int) -> None:
        """Look which trajectories are decided; without a proposer all are.

        Args:
            plan: keeps the decisions.
            proposer: of alternatives, or None if workers choose from what the environment lists.
            history_length: past turns in the states that it is shown.
        """
        self._plan, self._proposer, self._history_length = plan, proposer, history_length
        undecided: dict[int, list[StateRef]] = {}
        for ref in plan.refs():
            if not plan.decide(ref) and proposer is not None:
                undecided.setdefault(ref.trajectory, []).append(ref)
        self.decided = [index for index in range(len(plan.trajectories)) if index not in undecided]
        self.states = sum(map(len, undecided.values()))
        self.tokens = (0, 0)
        self._waiting = list(_batches(list(undecided.values())))[::-1]
        self._asked: dict[Future[ProposalBatch], list[StateRef]] = {}
        self._threads = ThreadPoolExecutor(max_workers=BATCHES, thread_name_prefix="proposer")

    @property
    def active(self) -> bool:
        """Whether alternatives are still to come."""
        return bool(self._waiting or self._asked)

    def ask(self) -> None:
        """Ask for more, if fewer than `BATCHES` batches are under way."""
        while self._waiting and len(self._asked) < BATCHES and self._proposer is not None:
            refs = self._waiting.pop()
            future = self._threads.submit(self._proposer.propose, self._questions(refs))
            self._asked[future] = refs

    def finished(self, wait_for_one: bool) -> list[int]:
        """Return the trajectories whose alternatives have come.

        Args:
            wait_for_one: wait until there is one, if any are under way.

        Raises:
            BranchError: if the proposer gave other than one answer per state, or the expert's own action.
        """
        if not self._asked:
            return []
        done, _ = wait(self._asked, timeout=None if wait_for_one else 0, return_when=FIRST_COMPLETED)
        trajectories: dict[int, None] = {}
        for future in done:
            refs = self._asked.pop(future)
            proposals = future.result()
            self.tokens = (
                self.tokens[0] + proposals.prompt_tokens,
                self.tokens[1] + proposals.completion_tokens,
            )
            self._keep(refs, proposals)
            trajectories |= dict.fromkeys(ref.trajectory for ref in refs)
        return list(trajectories)

    def close(self) -> None:
        """Drop what has not been asked for; what is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _questions(self, refs: Sequence[StateRef]) -> list[ProposalRequest]:
        questions = []
        for index in dict.fromkeys(ref.trajectory for ref in refs):
            trajectory = self._plan.trajectories[index]
            states = expert_states(trajectory, self._history_length)
            steps = [ref.step for ref in refs if ref.trajectory == index]
            questions += [
                ProposalRequest(index, step, trajectory.task, states[step], trajectory.steps[step].action)
                for step in steps
            ]
        return questions

    def _keep(self, refs: Sequence[StateRef], proposals: ProposalBatch) -> None:
        if len(proposals.alternatives) != len(refs):
            raise BranchError(
                f"The proposer answered {len(proposals.alternatives)} of {len(refs)} states. Return one tuple of "
                "alternatives per question, in the order of the questions."
            )
        for ref, alternatives in zip(refs, proposals.alternatives, strict=True):
            expert = self._plan.trajectories[ref.trajectory].steps[ref.step].action
            if any(canonical(item.action) == canonical(expert) for item in alternatives):
                raise BranchError(
                    f"The proposer offered the expert's own action {expert!r} as an alternative (trajectory "
                    f"{ref.trajectory}, step {ref.step}). Leave it out."
                )
            self._plan.note(ref, alternatives, Usage())


def _batches(trajectories: Sequence[list[StateRef]]) -> Iterator[list[StateRef]]:
    """Yield whole trajectories, `BATCH_STATES` states or a little more at a time."""
    batch: list[StateRef] = []
    for refs in trajectories:
        batch += refs
        if len(batch) >= BATCH_STATES:
            yield batch
            batch = []
    if batch:
        yield batch
