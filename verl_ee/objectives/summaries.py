"""Summaries of executed transitions, for a world model that predicts what matters of a long page instead of all of it.

The paper predicts them in WebShop, SearchQA and WebArena; the model itself writes them, and in WebArena it is told the
task (appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.store import ExecutedBranch
from verl_ee.objectives.text_writing import TextWriter, write_missing_texts
from verl_ee.prompts.text import Message

SUMMARIES_FILE = "summaries.parquet"
SCHEMA = pa.schema([("transition", pa.string()), ("text", pa.string()), ("writer", pa.string())])
SYSTEM = "You report what an agent's action led to. You write only the report, in plain sentences."


@dataclass(frozen=True)
class SummaryRequest:
    """All that a summary is written from: a task, an action and what it led to.

    Attributes:
        transition: key of the executed transition.
        task: what the agent was asked to do.
        action: what it did.
        observation: what came back.
        valid: whether the environment took the action.
        done: whether the episode ended with it.
    """

    transition: str
    task: str
    action: str
    observation: str
    valid: bool
    done: bool

    @property
    def prompt(self) -> list[Message]:
        """Messages that ask a language model for the summary."""
        lines = [f"Task: {self.task}", f"What was done: {self.action}", "What came back:", self.observation]
        lines += ["It was refused."] * (not self.valid) + ["The episode ended with it."] * self.done
        lines += [
            "",
            "Summarise what came back in two to four sentences: what the action changed, and what of it matters for "
            "the task. Keep names, numbers and prices as they are written. Say nothing that did not come back, and do "
            "not advise what to do next.",
        ]
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


def summary_requests(
    trajectories: Sequence[ExpertTrajectory], outcomes: Iterable[ExecutedBranch]
) -> list[SummaryRequest]:
    """Return the distinct transitions of branches, in their order.

    Args:
        trajectories: of the expert file.
        outcomes: the branches; several may point to one transition.
    """
    found: dict[str, SummaryRequest] = {}
    for item in outcomes:
        task = trajectories[item.trajectory].instruction
        change = SummaryRequest(item.transition, task, item.action, item.observation, item.valid, item.done)
        found.setdefault(item.transition, change)
    return list(found.values())


def write_summaries(
    folder: Path, found: Sequence[SummaryRequest], writer: TextWriter[SummaryRequest], max_dropped: float
) -> dict[str, int]:
    """Have a summary written for every transition that has none yet.

    Args:
        folder: where `summaries.parquet` goes; a killed run's parts in it are taken up.
        found: the transitions.
        writer: of the summaries.
        max_dropped: share of them that may be empty, or cut off, which leaves nothing of them.

    Returns:
        How many were `written`, and how many are `empty`: their branches are no examples.

    Raises:
        ExampleError: if more are empty; the file is written before.
    """
    path = folder / SUMMARIES_FILE
    rows = write_missing_texts(
        path, SCHEMA, ["transition"], found, writer, lambda change, text: _row(change, text, writer.name)
    )
    empty = sum(not row["text"] for row in rows)
    if empty and (empty == len(rows) or empty > max_dropped * len(rows)):
        raise ExampleError(
            f"{empty} of {len(rows)} summaries are empty or were cut off, more than early_experience.max_dropped="
            f"{max_dropped:g} allows. Raise early_experience.reflection.max_tokens, or choose another "
            f"early_experience.world_model.writer; delete {path} to have them written again."
        )
    return {"written": len(rows) - empty, "empty": empty}


def read_summaries(folder: Path) -> dict[str, str]:
    """Return the summary of each transition, empty where none could be written.

    Raises:
        StoreError: if the file is missing, broken or of another version.
    """
    return {row["transition"]: row["text"] for row in read_table(folder / SUMMARIES_FILE, SCHEMA)}


def _row(change: SummaryRequest, text: str, writer: str) -> dict[str, str]:
    return {"transition": change.transition, "text": text, "writer": writer}
