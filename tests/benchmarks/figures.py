"""Measures ours beside a reference and a limit, and prints each figure as one line of JSON.

The sides take turns (ours, reference, limit, ours, ...), so that whatever else the machine does meets all of them
alike. Rates are medians; the spread is that of the ratios within the turns.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

RUNS = 3
"""Turns of each side, unless the environment variable RUNS says otherwise."""
_RATIOS = (("reference", "ratio_to_reference", "spread"), ("limit", "ratio_to_limit", "spread_to_limit"))


@dataclass(frozen=True)
class Sample:
    """One run of one side.

    Attributes:
        rate: what it did per second; higher is better.
        notes: counts that belong into the line beside the rates.
    """

    rate: float
    notes: Mapping[str, Any] = field(default_factory=dict)


Measure = Callable[[], Sample]


@dataclass(frozen=True)
class AtLeast:
    """A threshold from below."""

    value: float

    def holds(self, measured: Any) -> bool:
        return isinstance(measured, int | float) and measured >= self.value


@dataclass(frozen=True)
class AtMost:
    """A threshold from above."""

    value: float

    def holds(self, measured: Any) -> bool:
        return isinstance(measured, int | float) and measured <= self.value


@dataclass(frozen=True)
class Exactly:
    """A threshold that is a count."""

    value: Any

    def holds(self, measured: Any) -> bool:
        return bool(measured == self.value)


@dataclass(frozen=True)
class Within:
    """A threshold from both sides."""

    value: tuple[float, float]

    def holds(self, measured: Any) -> bool:
        return isinstance(measured, int | float) and self.value[0] <= measured <= self.value[1]


Threshold = AtLeast | AtMost | Exactly | Within
Thresholds = Mapping[str, Threshold]
_NAMES: dict[type[Threshold], str] = {AtLeast: "at_least", AtMost: "at_most", Exactly: "exactly", Within: "within"}


class Report:
    """Prints figures as they come.

    Attributes:
        runs: turns of each side.
        met: whether every threshold so far was met.
    """

    def __init__(self) -> None:
        self.runs, self.met = int(os.environ.get("RUNS", RUNS)), True
        if self.runs < 1:
            raise ValueError(f"RUNS={self.runs}; expected at least 1.")
        _print({"machine": machine()})

    def figure(
        self,
        name: str,
        ours: Measure,
        reference: Measure | None = None,
        limit: Measure | None = None,
        thresholds: Thresholds | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure the sides in turns, and print what came out.

        Args:
            name: of the figure.
            ours: measures ours.
            reference: measures what ours is to beat, if there is such a thing.
            limit: measures what ours cannot beat, if there is such a thing.
            thresholds: by key of the line.
            constants: more of the line.
        """
        sides = {"ours": ours, "reference": reference, "limit": limit}
        measures = {side: measure for side, measure in sides.items() if measure is not None}
        samples: dict[str, list[Sample]] = {side: [] for side in measures}
        with tqdm(total=self.runs * len(measures), desc=name, unit="run") as bar:
            for _ in range(self.runs):
                for side, measure in measures.items():
                    samples[side].append(measure())
                    bar.update(1)
        rates = {side: [sample.rate for sample in taken] for side, taken in samples.items()}
        content: dict[str, Any] = {"name": name, "runs": self.runs}
        content |= {side: statistics.median(taken) for side, taken in rates.items()}
        for side, ratio, spread in _RATIOS:
            if side in rates:
                ratios = [a / b for a, b in zip(rates["ours"], rates[side], strict=True)]
                content |= {ratio: content["ours"] / content[side], spread: [min(ratios), max(ratios)]}
        self.line(content | _agreed([sample.notes for sample in samples["ours"]]) | dict(constants or {}), thresholds)

    def line(self, content: Mapping[str, Any], thresholds: Thresholds | None = None) -> None:
        """Print a figure that was measured elsewhere.

        Args:
            content: the line; the keys that every line has are null where it says nothing of them.
            thresholds: by key of the line.
        """
        keys = ["name", "ours", *(key for keys in zip(*_RATIOS, strict=True) for key in keys), "runs"]
        line: dict[str, Any] = dict.fromkeys(keys) | dict(content)
        if thresholds:
            met = all(threshold.holds(line.get(key)) for key, threshold in thresholds.items())
            named = {key: {_NAMES[type(threshold)]: threshold.value} for key, threshold in thresholds.items()}
            line |= {"threshold": named, "met": met}
            self.met = self.met and met
        _print(line)


def machine() -> dict[str, Any]:
    """Return where this runs, what else it was doing, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("verl_ee", "gymnasium", "ray")},
    }


def _agreed(notes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each note once, or what every run said where they disagree, which is no count that could be met."""
    by_key = {key: [note.get(key) for note in notes] for note in notes for key in note}
    return {key: values[0] if values.count(values[0]) == len(values) else values for key, values in by_key.items()}


def _print(line: Mapping[str, Any]) -> None:
    print(json.dumps(_rounded(line)), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
