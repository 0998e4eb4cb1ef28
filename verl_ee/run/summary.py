"""The result of a run as one small file, `summary.json`, complete after every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.run.set_totals import SetTotals, total_of
from verl_ee.run.stage_result import Share, StageResult, in_order

if TYPE_CHECKING:
    from verl_ee.experience.collecting.collection import CollectionResult

SUMMARY_FILE = FileFormat(
    version=2,
    error=StoreError,
    broken="is not a summary of a run",
    fix="Name the trainer.default_local_dir of a run with early experience, or repeat the command that made the run in "
    "another folder.",
    oldest=1,
)
"""Version 1 calls `restore` of collected sets `way`."""


@dataclass(frozen=True)
class RationaleCounts:
    """Rationales by their fate.

    Attributes:
        gates: how many were `accepted`, and how many each gate rejected.
        seconds: wall time of writing them.
    """

    gates: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class SummaryCounts:
    """Summaries of transitions by their fate.

    Attributes:
        written: how many have a text.
        empty: how many have none.
        seconds: wall time of writing them.
    """

    written: int
    empty: int
    seconds: float


@dataclass
class RunSummary:
    """Counts of collecting and writing, and success after every stage; each `record_` method rewrites the file.

    Attributes:
        seed: `data.seed`.
        collect: sums over all sets of branches; None if none was collected.
        stages: evaluated stages, in the order of their latest evaluation.
        checkpoints: place of the latest checkpoint of each name: `hand_over` and `grpo`.
        sets: totals of each set of branches, by its name.
        reflect: counts of rationales; None if there are none.
        summarise: counts of summaries of transitions; None if there are none.
        path: the file.
    """

    seed: int
    collect: SetTotals | None
    stages: tuple[StageResult, ...]
    checkpoints: dict[str, str] = field(default_factory=dict)
    sets: dict[str, SetTotals] = field(default_factory=dict)
    reflect: RationaleCounts | None = None
    summarise: SummaryCounts | None = None
    path: Path = field(default=Path(), init=False, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path, seed: int) -> RunSummary:
        """Read the summary of a run that goes on, or begin one.

        Args:
            path: the file; it need not exist.
            seed: seed of a run that begins.

        Raises:
            StoreError: if the file is broken or of a newer schema.
        """
        summary = read_versioned_json(path, cls, SUMMARY_FILE) if path.exists() else cls(seed, None, ())
        summary.path = path
        return summary

    def stage(self, name: str) -> StageResult | None:
        """Return the result of a stage, or None if it was not evaluated."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def share(self, stage: str, split: str) -> Share | None:
        """Return the success of a stage on a split, or None if it is not known."""
        result = self.stage(stage)
        return None if result is None else result.shares.get(split)

    def pairs(self, later: str, earlier: str, split: str) -> list[tuple[bool, bool]]:
        """Return the outcomes of the tasks that both stages played, the later first; none if not all are known."""
        outcomes_later, outcomes_earlier = self._outcomes(later, split), self._outcomes(earlier, split)
        if outcomes_later.keys() != outcomes_earlier.keys():
            return []
        return [(success, outcomes_earlier[task]) for task, success in outcomes_later.items()]

    def record_set(self, name: str, result: CollectionResult, prices: Mapping[str, float] | None = None) -> None:
        """Record what collecting a set of branches gave, and what it cost if there are prices."""
        self.sets[name] = SetTotals.of(result, prices)
        self.collect = total_of(self.sets.values())
        self._write()

    def record_rationales(self, gates: Mapping[str, int], seconds: float) -> None:
        """Record how many rationales passed, and how many each gate rejected."""
        self.reflect = RationaleCounts(dict(gates), round(seconds, 2))
        self._write()

    def record_summaries(self, written: int, empty: int, seconds: float) -> None:
        """Record how many summaries of transitions were written, and how many are empty."""
        self.summarise = SummaryCounts(written, empty, round(seconds, 2))
        self._write()

    def record_evaluation(
        self,
        stage: str,
        seconds: float | None,
        success: Mapping[str, float],
        episodes: Mapping[str, int],
        outcomes: Mapping[str, Mapping[str, bool]],
        no_action: Mapping[str, float] | None = None,
        env_failed: Mapping[str, float] | None = None,
    ) -> StageResult:
        """Record success after a stage, in place of an earlier entry of the same stage, and return the entry.

        Args:
            stage: name of the stage.
            seconds: that the stage took, evaluation excluded; None: as in the earlier entry, or 0, for a stage that
                another job trained.
            success: core metric by data source; its split is the last part of its name, or all of it where two end
                alike.
            episodes: number of episodes by data source.
            outcomes: whether each task succeeded, by data source; recorded where every episode is among them.
            no_action: share of the responses without an action, by data source; None: not known.
            env_failed: share of the episodes whose environment failed, by data source; None: not known.
        """
        if seconds is None:
            earlier = self.stage(stage)
            seconds = 0.0 if earlier is None else earlier.seconds
        result = StageResult.of(stage, round(seconds, 2), success, episodes, outcomes, no_action, env_failed)
        self.stages = (*(other for other in self.stages if other.name != stage), result)
        self._write()
        return result

    def record_checkpoint(self, name: str, path: Path) -> None:
        """Record where a checkpoint lies; the latest of a name wins."""
        self.checkpoints[name] = str(path)
        self._write()

    def _outcomes(self, stage: str, split: str) -> Mapping[str, bool]:
        result = self.stage(stage)
        return {} if result is None else result.outcomes.get(split, {})

    def _write(self) -> None:
        content: dict[str, object] = {
            "schema": SUMMARY_FILE.version,
            "seed": self.seed,
            "collect": None if self.collect is None else self.collect.to_json(),
            "stages": [asdict(stage) for stage in self.stages],
            "checkpoints": self.checkpoints,
        }
        if self.sets:
            content["sets"] = {name: totals.to_json() for name, totals in self.sets.items()}
        if self.reflect is not None:
            content["reflect"] = asdict(self.reflect)
        if self.summarise is not None:
            content["summarise"] = asdict(self.summarise)
        write_json(self.path, content)


def read_summary(path: Path) -> RunSummary:
    """Read the summary of a run for a report, its stages in the order in which they run.

    Raises:
        StoreError: if the file is missing, broken or of a newer schema, or the success of a stage is no share.
    """
    summary = read_versioned_json(path, RunSummary, SUMMARY_FILE)
    for stage in summary.stages:
        _check_shares(stage, path)
    ordered = replace(summary, stages=in_order(summary.stages))
    ordered.path = path
    return ordered


def _check_shares(stage: StageResult, path: Path) -> None:
    try:
        _ = stage.shares
    except (KeyError, ValueError) as error:
        reason = f"stage {stage.name!r}: {error}"
        raise StoreError(f"{path} {SUMMARY_FILE.broken} ({reason}). {SUMMARY_FILE.fix}") from None
