"""The state of a run, in `state.json`: which run it is, which stages have finished, and how far training got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from verl_ee.errors import StageError
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.run.identity import Identity

STATE_FILE = FileFormat(
    version=3,
    error=StageError,
    broken="is not a state file of verl_ee",
    fix="Choose another trainer.default_local_dir.",
    fix_older="Resume the run with the verl_ee that began it, or choose another trainer.default_local_dir.",
)
"""Version 2, of verl_ee 0.1, has other names for keys of early experience in its identity."""
HAND_OVER = "hand_over"
"""Name under which the hand-over counts as finished."""


@dataclass(frozen=True)
class StageProgress:
    """How far a stage was trained.

    Attributes:
        step: optimizer steps whose result is saved.
        total: optimizer steps of the stage.
        examples: hash of the examples that it learns from.
    """

    step: int
    total: int
    examples: str


@dataclass(frozen=True)
class RunState:
    """How far a run got.

    Attributes:
        identity: settings and files that its data and weights depend on.
        finished: names of finished steps, oldest first: `collect/<set>`, `reflect`, `summarise`, stages, `hand_over`.
        trained: progress of each stage that has a checkpoint, in the order in which they were trained.
    """

    identity: Identity
    finished: tuple[str, ...] = ()
    trained: Mapping[str, StageProgress] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunState | None:
        """Read the state of a run, or return None if no run has begun there.

        Raises:
            StageError: if the file is broken or of another schema.
        """
        return read_versioned_json(path, cls, STATE_FILE) if path.exists() else None

    def with_finished(self, *names: str) -> RunState:
        """Return the state in which these have finished as well."""
        return replace(self, finished=(*self.finished, *names))

    def with_progress(self, stage: str, progress: StageProgress) -> RunState:
        """Return the state in which a stage has been trained so far."""
        return replace(self, trained={**self.trained, stage: progress})

    def without_progress(self, stage: str) -> RunState:
        """Return the state in which a stage has not been trained."""
        return replace(self, trained={name: progress for name, progress in self.trained.items() if name != stage})

    def write(self, path: Path) -> None:
        """Write the file, which appears whole or not at all."""
        write_json(path, {"schema": STATE_FILE.version, **asdict(self)})
