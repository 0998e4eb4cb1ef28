"""The numbers of every step, in `metrics.jsonl`: rows are appended, dropped after a kill, and read (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import atomic, room_for
from verl_ee.run.stage_result import GRPO

SCORE = "critic/score/mean"
"""verl's key of the mean score of a GRPO step."""
OPTIMIZER_STEPS = "early_experience/optimizer_steps"
"""Key of the optimizer steps that a GRPO step took."""
_ROW_BEGINS = '{"stage"'


@dataclass(frozen=True)
class MetricStep:
    """A row of the file.

    Attributes:
        stage: a stage of mid-training, or `grpo`.
        step: counted from 1 over all of mid-training, and again over GRPO.
        values: numbers of the step.
    """

    stage: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunMetrics:
    """The content of the file.

    Attributes:
        mid_training: one row per optimizer step, ascending.
        grpo: one row per step of verl, ascending.
        cut: rows that a kill cut off, and that were left out.
    """

    mid_training: tuple[MetricStep, ...]
    grpo: tuple[MetricStep, ...]
    cut: int


def append_step(path: Path, step: MetricStep) -> None:
    """Append a row.

    Raises:
        WriteError: if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"stage": step.stage, "step": step.step, **step.values}
    with room_for(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def drop_steps_after(path: Path, mid_training: int, grpo: int) -> None:
    """Drop the rows of steps that a resumed job takes again, and a last row that was cut off.

    Args:
        path: file of the run; it need not exist.
        mid_training: steps of mid-training that stay.
        grpo: steps of GRPO that stay.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        step = _parse(line)
        if step is not None and step.step <= (grpo if step.stage == GRPO else mid_training):
            kept.append(line + "\n")
    with atomic(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def read_metrics(path: Path) -> RunMetrics:
    """Read the steps of a run; of a step that a resumed run repeated, the last row counts.

    Raises:
        StoreError: if the file cannot be read, or a line is broken that no kill explains.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        # The run ended before its first step.
        lines = []
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). Make it accessible.") from None
    steps: dict[tuple[str, int], MetricStep] = {}
    cut = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        step = _parse(line)
        if step is None:
            cut += 1
            step = _parse_behind_cut(line)
            if step is None and number < len(lines):
                raise StoreError(
                    f"{path}, line {number}: not a row of metrics: {line[:60]!r}. Delete the line; its step is lost."
                )
        if step is not None:
            steps[step.stage, step.step] = step
    ordered = sorted(steps.values(), key=lambda step: step.step)
    mid_training = tuple(step for step in ordered if step.stage != GRPO)
    return RunMetrics(mid_training, tuple(step for step in ordered if step.stage == GRPO), cut)


def series(steps: Sequence[MetricStep], key: str) -> tuple[list[int], list[float]]:
    """Return the steps that logged `key`, and its values."""
    logged = [step for step in steps if key in step.values]
    return [step.step for step in logged], [step.values[key] for step in logged]


def _parse_behind_cut(line: str) -> MetricStep | None:
    """Return the row behind one that was cut off: a kill ends the file within a row, and the next is appended to it."""
    return _parse(line[max(line.rfind(_ROW_BEGINS), 0) :])


def _parse(line: str) -> MetricStep | None:
    """Return the row of a line, or None if it is none."""
    try:
        row = json.loads(line)
        stage, step = str(row.pop("stage")), int(row.pop("step"))
        return MetricStep(stage, step, {key: float(value) for key, value in row.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
