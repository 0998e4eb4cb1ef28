"""What has been executed and answered so far: small immutable files that any number of writers add to one folder.

A run that was killed finds here what it had done; runs that share a folder of facts never execute an action twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.store import TRANSITION_SCHEMA, Transition, row_of
from verl_ee.prompts.actions import canonical


class TransitionCache:
    """Transitions by state and canonical action.

    Attributes:
        found: keys of what was there from the start.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = PartFiles(folder, TRANSITION_SCHEMA)
        self._states: dict[str, dict[str, Transition]] = {}
        self._new: list[Transition] = []
        for row in self.parts.read():
            self._keep(Transition(**{**row, "prefix": tuple(row["prefix"])}))
        self.found = frozenset(fact.key for actions in self._states.values() for fact in actions.values())

    def known(self, state: str) -> Mapping[str, Transition]:
        """Return what is known of a state, by canonical action."""
        return self._states.get(state, {})

    def add(self, transitions: Iterable[Transition]) -> None:
        """Add facts; those already known are checked against what is known.

        Raises:
            StoreError: if the same action in the same state had another outcome before.
        """
        for transition in transitions:
            if self._keep(transition):
                self._new.append(transition)

    def flush(self) -> None:
        """Write what was added since the last time."""
        new, self._new = self._new, []
        self.parts.write([row_of(transition) for transition in new])

    def _keep(self, transition: Transition) -> bool:
        actions = self._states.setdefault(transition.state, {})
        before = actions.setdefault(canonical(transition.action), transition)
        if before is transition:
            return True
        if (before.observation, before.valid, before.done) != (
            transition.observation,
            transition.valid,
            transition.done,
        ):
            raise StoreError(
                f"Two outcomes of one transition in {self.parts.folder}: task {transition.task!r}, after "
                f"{len(transition.prefix)} actions, {transition.action!r} led to {before.observation!r} and to "
                f"{transition.observation!r}. The environment is not deterministic: register it with "
                "nondeterministic=True, or delete the folder if the environment has changed without its version."
            )
        return False
