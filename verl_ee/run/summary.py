"""The result of a run as one small JSON file, complete after every stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_ee.errors import StageError
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.cost import money
from verl_ee.experience.files.atomic import write_json

SCHEMA = 1


class RunSummary:
    """What was collected, and success after every stage."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path, self._content = path, content

    @classmethod
    def load(cls, path: Path, seed: int) -> RunSummary:
        """Read the summary of a run that goes on, or begin one.

        Raises:
            StageError: if the file is broken or of a newer schema.
        """
        if not path.exists():
            return cls(path, {"schema": SCHEMA, "seed": seed, "collect": None, "stages": [], "checkpoints": {}})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            readable = int(content["schema"]) <= SCHEMA
        except (ValueError, KeyError, TypeError):
            readable = False
        if not readable:
            raise StageError(
                f"{path} is not a summary that this verl_ee can read. Update it, or choose another folder."
            )
        return cls(path, content)

    def collected(self, name: str, result: CollectionResult, prices: Mapping[str, float] | None = None) -> None:
        """Record what collecting a set of branches gave, and what it cost if there are prices.

        `collect` has the sums over all sets, `sets` each of them.
        """
        found = {
            "states": result.states,
            "transitions": result.transitions,
            "branches": result.branches,
            "reused": result.reused,
            "mismatches": result.lost,
            "failed": result.failed,
            "faults": result.faults,
            "way": result.restore,
            **asdict(result.cost),
        }
        if prices:
            found["money"] = money(result.cost, prices)
        sets = self._content.setdefault("sets", {}) | {name: found}
        self._content["sets"] = sets
        self._content["collect"] = {key: _total([item[key] for item in sets.values()]) for key in found}
        self._write()

    def reflected(self, gates: Mapping[str, int], seconds: float) -> None:
        """Record how many rationales passed, and how many each gate rejected."""
        self._content["reflect"] = {"gates": dict(gates), "seconds": round(seconds, 2)}
        self._write()

    def summarised(self, counts: Mapping[str, int], seconds: float) -> None:
        """Record how many summaries were written, and how many are empty."""
        self._content["summarise"] = {**counts, "seconds": round(seconds, 2)}
        self._write()

    def evaluated(
        self,
        stage: str,
        seconds: float | None,
        success: Mapping[str, float],
        episodes: Mapping[str, int],
        outcomes: Mapping[str, Mapping[str, bool]],
    ) -> None:
        """Record success after a stage, replacing an earlier entry of the same stage.

        Args:
            stage: name of the stage.
            seconds: that the stage took, evaluation excluded; None: as in the earlier entry, or 0, for a stage that
                another job trained.
            success: share per data source; the key is the last part of its name, or all of it where two end alike.
            episodes: played per data source.
            outcomes: whether each task succeeded, per data source; recorded where every episode is among them.
        """
        ends = Counter(_split(name) for name in episodes)
        key = {name: _split(name) if ends[_split(name)] == 1 else name for name in episodes}
        earlier = next((item for item in self._content["stages"] if item["name"] == stage), {"seconds": 0.0})
        entry = {
            "name": stage,
            "seconds": earlier["seconds"] if seconds is None else round(seconds, 2),
            "success": {key[name]: value for name, value in success.items()},
            "episodes": {key[name]: value for name, value in episodes.items()},
            "outcomes": {
                key[name]: dict(tasks) for name, tasks in outcomes.items() if len(tasks) == episodes.get(name)
            },
        }
        stages = [item for item in self._content["stages"] if item["name"] != stage]
        self._content["stages"] = [*stages, entry]
        self._write()

    def evaluated_stages(self) -> list[str]:
        """Return the stages whose success is recorded."""
        return [item["name"] for item in self._content["stages"]]

    def checkpoint(self, name: str, path: Path) -> None:
        """Record where a checkpoint lies; the latest of a name wins."""
        self._content["checkpoints"][name] = str(path)
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._content)


def _total(values: list[Any]) -> Any:
    """Add numbers and counters; of texts, the different ones."""
    if isinstance(values[0], dict):
        return dict(sum((Counter(value) for value in values), Counter()))
    return "+".join(dict.fromkeys(filter(None, values))) if isinstance(values[0], str) else sum(values)


def _split(data_source: str) -> str:
    return data_source.rsplit("/", 1)[-1]


def outcomes_of(data_sources: Sequence[str], infos: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, bool]]:
    """Return whether each task succeeded, per data source.

    Args:
        data_sources: of each episode.
        infos: `reward_extra_info` of each episode, by key. An episode without `task`, or whose `acc` is neither 0
            nor 1, is left out; of a task that was played more than once, the last counts.
    """
    found: dict[str, dict[str, bool]] = {}
    rows = zip(data_sources, infos.get("task", ()), infos.get("acc", ()), strict=False)
    for data_source, task, success in rows:
        if task is not None and success in (0.0, 1.0):
            found.setdefault(str(data_source), {})[str(task)] = bool(success)
    return found
