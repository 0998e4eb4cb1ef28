"""Transitions that have been executed: small immutable files that any number of writers add to one folder.

A killed run goes on from the transitions that it finds here. Runs that share a folder never execute an action twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from verl_ee.envs import CanonicalForm
from verl_ee.errors import StoreError
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.store import TRANSITION_SCHEMA, Transition, transition_of, transition_row


class TransitionCache:
    """Transitions by state and canonical action.

    Attributes:
        parts: the files of the folder.
        known_at_start: keys of the transitions that the folder held when the cache was opened.
    """

    def __init__(self, folder: Path, canonical: CanonicalForm = str.strip) -> None:
        """Read the transitions of a folder; it need not exist.

        Args:
            folder: the folder.
            canonical: canonical form of the actions.

        Raises:
            StoreError: if a file is broken, or two transitions contradict each other.
        """
        self.parts, self._canonical = PartFiles(folder, TRANSITION_SCHEMA), canonical
        self._by_state: dict[str, dict[str, Transition]] = {}
        self._unwritten: list[Transition] = []
        for row in self.parts.read():
            self._keep(transition_of(row))
        self.known_at_start = frozenset(
            transition.key for by_action in self._by_state.values() for transition in by_action.values()
        )

    def known(self, state: str) -> Mapping[str, Transition]:
        """Return the transitions from a state, by canonical action."""
        return self._by_state.get(state, {})

    def add(self, transitions: Iterable[Transition]) -> None:
        """Add transitions; one whose action is known must have the known outcome.

        Raises:
            StoreError: if the same action in the same state had another outcome before.
        """
        for transition in transitions:
            if self._keep(transition):
                self._unwritten.append(transition)

    def flush(self) -> None:
        """Write the transitions that were added since the last time."""
        rows = [transition_row(transition) for transition in self._unwritten]
        self._unwritten = []
        self.parts.write(rows)

    def _keep(self, transition: Transition) -> bool:
        """Return whether the transition is new."""
        outcome = transition.outcome
        by_action = self._by_state.setdefault(transition.state, {})
        before = by_action.setdefault(self._canonical(outcome.action), transition)
        if before is transition:
            return True
        known = before.outcome
        if replace(known, action=outcome.action) != outcome:
            raise StoreError(
                f"Two outcomes of one transition in {self.parts.folder}: task {transition.task!r}, after "
                f"{len(transition.prefix)} actions, {outcome.action!r} led to {known.observation!r} and to "
                f"{outcome.observation!r}. The environment is not deterministic: register it with "
                "nondeterministic=True, or delete the folder if the environment has changed without its version."
            )
        return False
