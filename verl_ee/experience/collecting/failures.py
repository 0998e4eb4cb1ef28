"""States and actions of a collection that have no outcome, and how many of them are allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from verl_ee.config import CollectConfig
from verl_ee.errors import BranchError
from verl_ee.experience.branching.protocol import Fault
from verl_ee.experience.state_ref import StateRef

SHOWN = 3
"""Faults that a message shows."""
CONFLICT = "conflict"
CONFLICT_ADVICE = (
    "Where an action has two outcomes, register the environment with nondeterministic=True, or delete the folder that "
    "holds both if the environment has changed without its version. "
)


class Failures:
    """Faults of a collection so far.

    Attributes:
        lost: states that could not be reached, each with its last fault.
        failed: actions that could not be executed, by state and action.
        kinds: number of faults of each kind, those that a second attempt repaired included.
    """

    def __init__(self, config: CollectConfig, environment_id: str, states: int) -> None:
        """Begin without faults.

        Args:
            config: shares of lost states and of failed actions that are allowed.
            environment_id: the environment, for messages.
            states: number of states of the collection.
        """
        self._config, self._environment_id, self._states = config, environment_id, states
        self.lost: dict[StateRef, Fault] = {}
        self.failed: dict[tuple[StateRef, str], Fault] = {}
        self.kinds: Counter[str] = Counter()

    def count(self, faults: Iterable[Fault]) -> None:
        """Count faults by their kind."""
        self.kinds.update(fault.kind for fault in faults)

    def add_lost_state(self, ref: StateRef, fault: Fault) -> None:
        """Record a state that could not be reached."""
        self.lost[ref] = fault

    def add_failed_actions(self, ref: StateRef, faults: Sequence[Fault]) -> None:
        """Record the actions whose outcome is missing; a fault without an action was repaired."""
        for fault in faults:
            if fault.action is not None:
                self.failed[ref, fault.action] = fault

    def add_conflict(self, ref: StateRef, action: str, difference: str | None) -> None:
        """Record an action that has two outcomes, of which none is kept.

        Args:
            ref: the state.
            action: the action.
            difference: how they differ, or None if there is no conflict.
        """
        if difference is None or (ref, action) in self.failed:
            return
        self.failed[ref, action] = Fault(ref, CONFLICT, difference, action)
        self.kinds[CONFLICT] += 1

    def add_unshared_action(self, ref: StateRef, action: str) -> None:
        """Record an action that another trajectory was to execute in the same state and could not."""
        message = "another trajectory comes by this state, and the action could not be executed there"
        self.failed.setdefault((ref, action), Fault(ref, "shared", message, action))

    def check(self, actions: int) -> None:
        """Refuse more failures than the config allows.

        Args:
            actions: number of actions of the collection.

        Raises:
            BranchError: naming the key that allows more, and the first faults.
        """
        config = self._config
        if len(self.lost) > config.max_mismatch * self._states:
            problem = f"{len(self.lost)} of {self._states} expert states could not be reached again"
            raise self._error(problem, "max_mismatch", config.max_mismatch, self.lost.values())
        if len(self.failed) > config.max_failed * actions:
            problem = f"{len(self.failed)} of {actions} actions could not be executed"
            raise self._error(problem, "max_failed", config.max_failed, self.failed.values())

    def _error(self, problem: str, key: str, allowed: float, faults: Iterable[Fault]) -> BranchError:
        faults = list(faults)
        first = "\n  ".join(sorted(str(fault) for fault in faults)[:SHOWN])
        hint = CONFLICT_ADVICE if any(fault.kind == CONFLICT for fault in faults) else ""
        return BranchError(
            f"{problem}, more than {self._config.key(key)}={allowed:g} allows. The expert file may not describe this "
            f"environment, or the environment is not deterministic: try `verl-ee envs check {self._environment_id}`. "
            f"{hint}All results so far are kept. First:\n  {first}"
        )
