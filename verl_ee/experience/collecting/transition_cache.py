"""Transitions that have been executed: files that any number of writers add to one folder.

A killed run goes on from the transitions that it finds here. Runs that share a folder never execute an action twice,
unless they do so at the same time. If it then has two outcomes, nobody can tell which one is right: neither is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from verl_ee.envs import CanonicalForm
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.store import TRANSITION_SCHEMA, Transition, transition_of, transition_row


class TransitionCache:
    """Transitions by state and canonical action, without those whose action has two outcomes.

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
            StoreError: if a file is broken.
        """
        self.parts, self._canonical = PartFiles(folder, TRANSITION_SCHEMA), canonical
        self._by_state: dict[str, dict[str, Transition]] = {}
        self._conflicts: dict[str, dict[str, str]] = {}
        self._unwritten: list[Transition] = []
        for row in self.parts.read():
            self._keep(transition_of(row))
        self.known_at_start = frozenset(
            transition.key for by_action in self._by_state.values() for transition in by_action.values()
        )

    def known(self, state: str) -> Mapping[str, Transition]:
        """Return the transitions from a state, by canonical action."""
        return self._by_state.get(state, {})

    def conflicts(self, state: str) -> Mapping[str, str]:
        """Return the actions from a state that have two outcomes, by canonical action, each with the difference."""
        return self._conflicts.get(state, {})

    def add(self, transitions: Iterable[Transition]) -> None:
        """Add transitions; an action whose known outcome is another one has a conflict from then on."""
        for transition in transitions:
            if self._keep(transition):
                self._unwritten.append(transition)

    def flush(self) -> None:
        """Write the transitions that were added since the last time."""
        self.parts.write([transition_row(transition) for transition in self._unwritten])
        self._unwritten = []

    def _keep(self, transition: Transition) -> bool:
        """Return whether the transition says something new."""
        state, action = transition.state, self._canonical(transition.outcome.action)
        if action in self.conflicts(state):
            return False
        by_action = self._by_state.setdefault(state, {})
        before = by_action.setdefault(action, transition)
        if before is transition:
            return True
        difference = before.outcome.difference(transition.outcome)
        if difference:
            del by_action[action]
            message = f"it has two outcomes in {self.parts.folder}: {difference}"
            self._conflicts.setdefault(state, {})[action] = message
        # Both outcomes are written, so that whoever reads the folder later sees the conflict.
        return bool(difference)
