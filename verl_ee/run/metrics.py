"""What a run left in its folder, read back and checked. The files are described in docs/data.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ee.errors import StoreError
from verl_ee.report.intervals import Share

SCHEMA = 1
SUMMARY, METRICS = Path("early_experience", "summary.json"), Path("early_experience", "metrics.jsonl")
BASE, GRPO = "base", "grpo"
_ROW_BEGINS = '{"stage"'


@dataclass(frozen=True)
class CollectedTotals:
    """What branching gave.

    Attributes:
        states: expert states.
        mismatches: states that could not be reached again.
        transitions: distinct facts.
        env_steps: environment steps executed, replay included.
        seconds: that it took.
    """

    states: int
    mismatches: int
    transitions: int
    env_steps: int
    seconds: float


@dataclass(frozen=True)
class StageResult:
    """A stage that was evaluated.

    Attributes:
        name: `base`, a stage of mid-training, or `grpo`.
        seconds: that it took.
        success: share per split; a split without a number is left out.
        outcomes: per split, whether each task succeeded, by its id; a split where that is not known is left out.
    """

    name: str
    seconds: float
    success: Mapping[str, Share]
    outcomes: Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`; stages in the order in which they run."""

    folder: Path
    seed: int
    collected: CollectedTotals | None
    stages: tuple[StageResult, ...]

    def share(self, stage: str, split: str) -> Share | None:
        """Return the success of a stage on a split, or None."""
        return next((item.success.get(split) for item in self.stages if item.name == stage), None)

    def pairs(self, later: str, earlier: str, split: str) -> list[tuple[bool, bool]]:
        """Return the outcomes of the tasks that both stages played, the later first; none if not all are known."""
        one, two = (
            next((item.outcomes.get(split, {}) for item in self.stages if item.name == name), {})
            for name in (later, earlier)
        )
        return [(one[task], two[task]) for task in one] if one.keys() == two.keys() else []


@dataclass(frozen=True)
class MetricStep:
    """A row of `metrics.jsonl`: a step of mid-training or of GRPO, each counted from 1, and its numbers."""

    stage: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunMetrics:
    """The content of `metrics.jsonl`.

    Attributes:
        mid_training: one row per optimizer step, ascending.
        grpo: one row per step of verl, ascending.
        cut: rows that a kill cut off, and that were left out.
    """

    mid_training: tuple[MetricStep, ...]
    grpo: tuple[MetricStep, ...]
    cut: int


def read_summary(folder: Path) -> RunSummary:
    """Read the summary of a run.

    Args:
        folder: `trainer.default_local_dir` of the run.

    Raises:
        StoreError: if the file is missing, broken, or of a newer schema.
    """
    path = folder / SUMMARY
    try:
        content = json.loads(_text(path))
        schema = int(content["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from None
    if schema > SCHEMA:
        raise StoreError(f"{path} has schema {schema}; this verl_ee reads up to {SCHEMA}. Update verl_ee.")
    try:
        names = CollectedTotals.__dataclass_fields__
        collect = content["collect"]
        collected = None if collect is None else CollectedTotals(**{name: collect[name] for name in names})
        stages = in_order(_stage(item) for item in content["stages"])
        return RunSummary(folder, int(content["seed"]), collected, stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None


def read_metrics(folder: Path) -> RunMetrics:
    """Read the steps of a run; of steps that a resumed run repeated, the last row counts.

    Args:
        folder: `trainer.default_local_dir` of the run.

    Raises:
        StoreError: if the file is missing, or a line is broken that no kill explains.
    """
    path = folder / METRICS
    steps: dict[tuple[str, int], MetricStep] = {}
    lines = _text(path).split("\n")
    cut = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        step = _step(line)
        if step is None:
            # A kill ends the file within a row, and the resumed run appends its first row to that rest.
            step = _step(line[max(line.rfind(_ROW_BEGINS), 0) :])
            if step is None and number < len(lines):
                raise StoreError(
                    f"{path}, line {number}: not a row of metrics: {line[:60]!r}. Delete the line; its step is lost."
                )
            cut += 1
        if step is not None:
            steps[step.stage, step.step] = step
    ordered = sorted(steps.values(), key=lambda item: item.step)
    mid_training = tuple(item for item in ordered if item.stage != GRPO)
    return RunMetrics(mid_training, tuple(item for item in ordered if item.stage == GRPO), cut)


def in_order(stages: Iterable[StageResult]) -> tuple[StageResult, ...]:
    """Return stages in the order in which they run: the base first, GRPO last, the others as they come.

    A resumed run evaluates its first model again, and the latest evaluation is the last of the file.
    """
    return tuple(sorted(stages, key=lambda stage: {BASE: 0, GRPO: 2}.get(stage.name, 1)))


def series(steps: Sequence[MetricStep], key: str) -> tuple[list[int], list[float]]:
    """Return the steps that logged `key`, and its values."""
    chosen = [step for step in steps if key in step.values]
    return [step.step for step in chosen], [step.values[key] for step in chosen]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error.strerror}). Name the trainer.default_local_dir of a run with early "
            "experience that has got that far."
        ) from None


def _broken(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} is not a summary of a run ({type(error).__name__}: {error}). Repeat the command that made the run in "
        "another folder."
    )


def _stage(item: Mapping[str, Any]) -> StageResult:
    episodes = item["episodes"]
    success = {
        str(split): Share(float(value), int(episodes[split]))
        for split, value in item["success"].items()
        if not math.isnan(value)
    }
    outcomes = {
        str(split): {str(task): bool(succeeded) for task, succeeded in tasks.items()}
        for split, tasks in item.get("outcomes", {}).items()
    }
    return StageResult(str(item["name"]), float(item["seconds"]), success, outcomes)


def _step(line: str) -> MetricStep | None:
    try:
        row = json.loads(line)
        stage, step = str(row.pop("stage")), int(row.pop("step"))
        return MetricStep(stage, step, {key: float(value) for key, value in row.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
