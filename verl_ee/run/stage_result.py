"""Success after a stage: shares of episodes by split, and the outcome of each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

BASE, GRPO = "base", "grpo"
"""The first stage of a run, which is the model that it starts from, and the last."""


@dataclass(frozen=True)
class Share:
    """Part of the episodes that succeeded.

    Attributes:
        value: between 0 and 1.
        episodes: at least 1.

    Raises:
        ValueError: if either is out of its range.
    """

    value: float
    episodes: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a share lies between 0 and 1, found {self.value!r}")
        if self.episodes < 1:
            raise ValueError(f"a share needs at least one episode, found {self.episodes!r}")


@dataclass(frozen=True)
class StageResult:
    """A stage that was evaluated.

    Attributes:
        name: `base`, a stage of mid-training, or `grpo`.
        seconds: that it took.
        success: verl's core metric by split, the share of episodes that succeeded; NaN where verl reported none.
        episodes: number of episodes by split.
        outcomes: by split, whether each task succeeded, by its id; a split where that is not known is left out.
        no_action: share of the responses without an action by split; a split where that is not known is left out.
        env_failed: share of the episodes whose environment failed by split; a split without that is left out.
    """

    name: str
    seconds: float
    success: Mapping[str, float]
    episodes: Mapping[str, int]
    outcomes: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    no_action: Mapping[str, float] = field(default_factory=dict)
    env_failed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        seconds: float,
        success: Mapping[str, float],
        episodes: Mapping[str, int],
        outcomes: Mapping[str, Mapping[str, bool]],
        no_action: Mapping[str, float] | None = None,
        env_failed: Mapping[str, float] | None = None,
    ) -> StageResult:
        """Return the result of an evaluation, by split.

        Args:
            name: name of the stage.
            seconds: that it took.
            success: core metric by data source.
            episodes: number of episodes by data source.
            outcomes: whether each task succeeded, by data source; kept where every episode is among them.
            no_action: share of the responses without an action, by data source; None: not known.
            env_failed: share of the episodes whose environment failed, by data source; None: not known.
        """
        split = _splits_of(episodes)
        complete = {source: tasks for source, tasks in outcomes.items() if len(tasks) == episodes.get(source)}
        return cls(
            name,
            seconds,
            {split[source]: value for source, value in success.items()},
            {split[source]: count for source, count in episodes.items()},
            {split[source]: dict(tasks) for source, tasks in complete.items()},
            {split[source]: share for source, share in (no_action or {}).items() if source in split},
            {split[source]: share for source, share in (env_failed or {}).items() if source in split},
        )

    @property
    def shares(self) -> dict[str, Share]:
        """The share of each split that has one.

        Raises:
            KeyError: if the episodes of a split are not known.
            ValueError: if its success is no share.
        """
        return {split: Share(value, self.episodes[split]) for split, value in self.success.items() if not isnan(value)}


def in_order(stages: Iterable[StageResult]) -> tuple[StageResult, ...]:
    """Return stages in the order in which they run: the base first, GRPO last, the others as they come.

    A resumed run evaluates its first model again, and the latest evaluation is the last of the file.
    """
    return tuple(sorted(stages, key=lambda stage: {BASE: 0, GRPO: 2}.get(stage.name, 1)))


def outcomes_of(data_sources: Sequence[str], infos: Mapping[str, Sequence[object]]) -> dict[str, dict[str, bool]]:
    """Return whether each task succeeded, by data source.

    Args:
        data_sources: data source of each episode.
        infos: `reward_extra_info` of each episode, by key. An episode without `task`, or whose `acc` is neither 0
            nor 1, is left out; of a task that was played more than once, the last counts.
    """
    outcomes: dict[str, dict[str, bool]] = {}
    episodes = zip(data_sources, infos.get("task", ()), infos.get("acc", ()), strict=False)
    for data_source, task, success in episodes:
        if task is not None and success in (0.0, 1.0):
            outcomes.setdefault(str(data_source), {})[str(task)] = bool(success)
    return outcomes


def _splits_of(data_sources: Iterable[str]) -> dict[str, str]:
    """Return the split of each data source: the last part of its name, or all of it where two end alike."""
    ends = {source: source.rsplit("/", 1)[-1] for source in data_sources}
    counts = Counter(ends.values())
    return {source: end if counts[end] == 1 else source for source, end in ends.items()}
