"""States on their way to a proposer, in a sliding window, while workers execute what it has proposed before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from verl_ee.errors import BranchError
from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.collecting.alternative_shares import AlternativeShares
from verl_ee.experience.collecting.plan import CollectionPlan
from verl_ee.experience.collecting.proposal_journal import DecidedState
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.proposers import NO_ACTION, Proposal, ProposalBatch, ProposalRequest, Proposer
from verl_ee.experience.state_ref import StateRef

BATCHES = 16
"""Batches that the window of a proposer is made of: while one comes back and is replaced, the others go on."""


class ProposalQueue:
    """Decides the alternatives of every state.

    Attributes:
        decided: indices of the trajectories that need no proposer.
        states: number of states that need one.
        prompt_tokens: tokens that the proposer's language model has read.
        completion_tokens: tokens that it has written.
        shares: counts of what has been proposed.
    """

    def __init__(
        self, plan: CollectionPlan, shares: AlternativeShares, proposer: Proposer | None, history_length: int | None
    ) -> None:
        """Decide what can be decided without a proposer.

        Args:
            plan: keeps the decisions.
            shares: counts what is proposed, and judges it.
            proposer: source of alternatives, or None if workers choose from the list of the environment.
            history_length: past turns in the states that the proposer sees.
        """
        self._plan, self._proposer, self._history_length = plan, proposer, history_length
        self.shares = shares
        undecided: dict[int, list[StateRef]] = {}
        for ref in plan.refs():
            if not plan.decide(ref) and proposer is not None:
                undecided.setdefault(ref.trajectory, []).append(ref)
        self.decided = [index for index in range(len(plan.trajectories)) if index not in undecided]
        self.states = sum(len(refs) for refs in undecided.values())
        self.prompt_tokens = self.completion_tokens = 0
        self._window = 0 if proposer is None else proposer.window
        self._waiting = deque(_batches(list(undecided.values()), self._window // BATCHES))
        self._under_way: dict[Future[ProposalBatch], list[StateRef]] = {}
        # A batch has whole trajectories, so there are rarely as many.
        self._threads = ThreadPoolExecutor(max_workers=2 * BATCHES, thread_name_prefix="proposer")

    @property
    def active(self) -> bool:
        """Whether alternatives are still to come."""
        return bool(self._waiting or self._under_way)

    def submit(self) -> None:
        """Hand states to the proposer until its window is full."""
        while self._waiting and self._has_room() and self._proposer is not None:
            refs = self._waiting.popleft()
            future = self._threads.submit(self._proposer.propose, self._requests(refs))
            self._under_way[future] = refs

    def finished_trajectories(self, wait_for_one: bool) -> list[int]:
        """Return the indices of the trajectories whose alternatives have come since the last time.

        Args:
            wait_for_one: wait until there is one, if any are under way.

        Raises:
            BranchError: if the proposer gave other than one answer per state, the expert's own action, or too little.
        """
        if not self._under_way:
            return []
        timeout = None if wait_for_one else 0
        finished, _ = wait(self._under_way, timeout=timeout, return_when=FIRST_COMPLETED)
        indices: list[int] = []
        for future in finished:
            refs = self._under_way.pop(future)
            batch = future.result()
            self.prompt_tokens += batch.prompt_tokens
            self.completion_tokens += batch.completion_tokens
            self._record(refs, batch)
            self.shares.check_early()
            indices += [ref.trajectory for ref in refs]
        return list(dict.fromkeys(indices))

    def _has_room(self) -> bool:
        under_way = sum(len(refs) for refs in self._under_way.values())
        # A batch is whole trajectories: the last one may go beyond the window, or a long one would have to be alone.
        return under_way < self._window

    def close(self) -> None:
        """Drop the batches that are not under way; those that are end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _requests(self, refs: Sequence[StateRef]) -> list[ProposalRequest]:
        """Return the requests of some states, those of one trajectory together."""
        indices = dict.fromkeys(ref.trajectory for ref in refs)
        states = {index: expert_states(self._plan.trajectories[index], self._history_length) for index in indices}
        return [
            ProposalRequest(
                ref,
                self._plan.trajectories[ref.trajectory].task,
                states[ref.trajectory][ref.step],
                self._plan.expert_action(ref),
                self._plan.canonical(ref),
            )
            for ref in refs
        ]

    def _record(self, refs: Sequence[StateRef], batch: ProposalBatch) -> None:
        if len(batch.alternatives) != len(refs):
            raise BranchError(
                f"The proposer answered {len(batch.alternatives)} of {len(refs)} states. Return one tuple of "
                "alternatives per request, in the order of the requests."
            )
        responses = batch.responses or (0,) * len(refs)
        unused = batch.unused or ((),) * len(refs)
        for ref, alternatives, sampled, wasted in zip(refs, batch.alternatives, responses, unused, strict=True):
            self._check_expert_is_left_out(ref, alternatives)
            without_action = sum(response.reason == NO_ACTION for response in wasted)
            self._plan.record(ref, DecidedState(alternatives, Usage(), sampled, without_action))
            self.shares.add(self._plan.counts(ref), wasted)

    def _check_expert_is_left_out(self, ref: StateRef, alternatives: Sequence[Proposal]) -> None:
        expert_action, canonical = self._plan.expert_action(ref), self._plan.canonical(ref)
        if any(canonical(proposal.action) == canonical(expert_action) for proposal in alternatives):
            raise BranchError(
                f"The proposer offered the expert's own action {expert_action!r} as an alternative (trajectory "
                f"{ref.trajectory}, step {ref.step}). Leave it out."
            )


def _batches(trajectories: Sequence[list[StateRef]], size: int) -> Iterator[list[StateRef]]:
    """Yield whole trajectories, `size` states or a little more at a time."""
    batch: list[StateRef] = []
    for refs in trajectories:
        batch += refs
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
