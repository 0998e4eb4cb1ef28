"""Summaries of executed transitions, for a world model that predicts what matters of a long page instead of all of it.

The paper predicts them in WebShop, SearchQA and WebArena; the model itself writes them, and in WebArena it is told the
task (appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from verl_ee.config import WriterConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import instruction_of
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.outcome import Outcome
from verl_ee.objectives.writing.text_writing import TextWriter, write_missing_texts
from verl_ee.prompts.format import Message

SUMMARIES_FILE = "summaries.parquet"
SUMMARY_SCHEMA = pa.schema([("transition", pa.string()), ("text", pa.string()), ("writer", pa.string())])
SYSTEM = "You report what an agent's action led to. You write only the report, in plain sentences."


@dataclass(frozen=True)
class SummaryRequest:
    """An executed transition that needs a summary.

    Attributes:
        transition: key of the transition.
        task: the task of the agent.
        outcome: the action of the agent, and what came back.
    """

    transition: str
    task: str
    outcome: Outcome

    @property
    def key(self) -> str:
        """Key of the summary among all of a file."""
        return self.transition

    @property
    def prompt(self) -> list[Message]:
        """Messages that ask a language model for the summary."""
        outcome = self.outcome
        lines = [f"Task: {self.task}", f"What was done: {outcome.action}", "What came back:", outcome.observation]
        if outcome.refused:
            lines.append("It was refused.")
        if outcome.done:
            lines.append("The episode ended with it.")
        lines += [
            "",
            "Summarise what came back in two to four sentences: what the action changed, and what of it matters for "
            "the task. Keep names, numbers and prices as they are written. Say nothing that did not come back, and do "
            "not advise what to do next.",
        ]
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


@dataclass(frozen=True)
class Summary:
    """A summary as it was written.

    Attributes:
        transition: key of the transition.
        text: the summary, empty where none could be written.
        writer: kind of the writer: `policy` or `endpoint`.
    """

    transition: str
    text: str
    writer: str

    @property
    def key(self) -> str:
        """Key of the summary among all of a file."""
        return self.transition

    @property
    def is_empty(self) -> bool:
        """Whether no text could be written."""
        return not self.text

    def to_row(self) -> TableRow:
        """Return the summary as a row of the file."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: TableRow) -> Summary:
        """Return the summary of a row of the file."""
        return cls(**row)


def summary_requests(
    trajectories: Sequence[ExpertTrajectory], branches: Iterable[ExecutedBranch]
) -> list[SummaryRequest]:
    """Return the distinct transitions of branches, in their order.

    Args:
        trajectories: trajectories of the expert file.
        branches: executed branches; several may point to one transition.
    """
    requests: dict[str, SummaryRequest] = {}
    for branch in branches:
        task = instruction_of(trajectories[branch.ref.trajectory])
        requests.setdefault(branch.transition, SummaryRequest(branch.transition, task, branch.outcome))
    return list(requests.values())


def write_summaries(
    folder: Path,
    requests: Sequence[SummaryRequest],
    writer: TextWriter[SummaryRequest],
    config: WriterConfig,
    max_dropped: float,
) -> list[Summary]:
    """Have a summary written for every transition that has none yet.

    Args:
        folder: folder of `summaries.parquet`; the parts that a killed run left in it are taken up.
        requests: the transitions.
        writer: writer of the summaries.
        config: config of the writer, whose key a message names.
        max_dropped: share of the summaries that may be empty: the writer had nothing to say, or was cut off.

    Returns:
        All of them, in the order of the transitions; the branches of an empty one are no examples.

    Raises:
        ExampleError: if more are empty; the file is written before.
        StoreError: if a file of an earlier run cannot be read.
    """
    path = folder / SUMMARIES_FILE

    def record(request: SummaryRequest, text: str, cause: str) -> Summary:
        return Summary(request.transition, "" if cause else text, writer.kind)

    summaries = write_missing_texts(path, SUMMARY_SCHEMA, Summary, requests, writer, record)
    empty = sum(summary.is_empty for summary in summaries)
    if empty and (empty == len(summaries) or empty > max_dropped * len(summaries)):
        raise ExampleError(
            f"{empty} of {len(summaries)} summaries are empty or were cut off, more than early_experience.max_dropped="
            f"{max_dropped:g} allows. Raise {config.key('max_tokens')}, or choose another "
            f"early_experience.world_model.writer; delete {path} to have them written again."
        )
    return summaries


def read_summaries(folder: Path) -> dict[str, str]:
    """Return the summary of each transition, empty where none could be written.

    Raises:
        StoreError: if the file is missing, broken or of another version.
    """
    rows = read_table(folder / SUMMARIES_FILE, SUMMARY_SCHEMA)
    return {summary.transition: summary.text for summary in map(Summary.from_row, rows)}
