"""Asks a proposer for alternatives in batches of states, while workers execute what it proposed before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from verl_ee.errors import BranchError
from verl_ee.experience.plan import Place, Plan
from verl_ee.experience.proposers import Proposals, Proposer, Question
from verl_ee.experience.rendering import canonical
from verl_ee.experience.states import expert_states
from verl_ee.experience.work import Used

BATCH_STATES = 64
"""States whose alternatives are proposed together."""
BATCHES = 2
"""Batches under way at a time, so that the proposer need not wait for the driver."""


class Asker:
    """Decides the alternatives of every state.

    Attributes:
        decided: trajectories that need no proposer.
        states: states that do.
        tokens: read and written by the proposer's language model.
    """

    def __init__(self, plan: Plan, proposer: Proposer | None, history_length: int) -> None:
        """Look which trajectories are decided; without a proposer all are.

        Args:
            plan: keeps the decisions.
            proposer: of alternatives, or None if workers choose from what the environment lists.
            history_length: past turns in the states that it is shown.
        """
        self._plan, self._proposer, self._history_length = plan, proposer, history_length
        undecided: dict[int, list[Place]] = {}
        for place in plan.places():
            if not plan.decide(place) and proposer is not None:
                undecided.setdefault(place.trajectory, []).append(place)
        self.decided = [index for index in range(len(plan.trajectories)) if index not in undecided]
        self.states = sum(map(len, undecided.values()))
        self.tokens = (0, 0)
        self._waiting = list(_batches(list(undecided.values())))[::-1]
        self._asked: dict[Future[Proposals], list[Place]] = {}
        self._threads = ThreadPoolExecutor(max_workers=BATCHES, thread_name_prefix="proposer")

    @property
    def active(self) -> bool:
        """Whether alternatives are still to come."""
        return bool(self._waiting or self._asked)

    def ask(self) -> None:
        """Ask for more, if fewer than `BATCHES` batches are under way."""
        while self._waiting and len(self._asked) < BATCHES and self._proposer is not None:
            places = self._waiting.pop()
            future = self._threads.submit(self._proposer.propose, self._questions(places))
            self._asked[future] = places

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
            places = self._asked.pop(future)
            proposals = future.result()
            self.tokens = (
                self.tokens[0] + proposals.prompt_tokens,
                self.tokens[1] + proposals.completion_tokens,
            )
            self._keep(places, proposals)
            trajectories |= dict.fromkeys(place.trajectory for place in places)
        return list(trajectories)

    def close(self) -> None:
        """Drop what has not been asked for; what is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _questions(self, places: Sequence[Place]) -> list[Question]:
        questions = []
        for index in dict.fromkeys(place.trajectory for place in places):
            trajectory = self._plan.trajectories[index]
            states = expert_states(trajectory, self._history_length)
            steps = [place.step for place in places if place.trajectory == index]
            questions += [
                Question(index, step, trajectory.task, states[step], trajectory.steps[step].action) for step in steps
            ]
        return questions

    def _keep(self, places: Sequence[Place], proposals: Proposals) -> None:
        if len(proposals.alternatives) != len(places):
            raise BranchError(
                f"The proposer answered {len(proposals.alternatives)} of {len(places)} states. Return one tuple of "
                "alternatives per question, in the order of the questions."
            )
        for place, alternatives in zip(places, proposals.alternatives, strict=True):
            expert = self._plan.trajectories[place.trajectory].steps[place.step].action
            if any(canonical(item.action) == canonical(expert) for item in alternatives):
                raise BranchError(
                    f"The proposer offered the expert's own action {expert!r} as an alternative (trajectory "
                    f"{place.trajectory}, step {place.step}). Leave it out."
                )
            self._plan.note(place, alternatives, Used())


def _batches(trajectories: Sequence[list[Place]]) -> Iterator[list[Place]]:
    """Yield whole trajectories, `BATCH_STATES` states or a little more at a time."""
    batch: list[Place] = []
    for places in trajectories:
        batch += places
        if len(batch) >= BATCH_STATES:
            yield batch
            batch = []
    if batch:
        yield batch
