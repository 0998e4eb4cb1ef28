"""Task files: the rows that verl's data loader gives to the agent loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.envs import TextEnv
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.prompts.format import PromptFormat
from verl_ee.prompts.state import EpisodeHistory

AGENT_NAME = "early_experience"


def write_tasks(path: Path, env: TextEnv, tasks: Iterable[tuple[str, str]], form: PromptFormat) -> int:
    """Write tasks as a Parquet file for `data.train_files` or `data.val_files`, and return their number.

    A row's `prompt` is the first state of the task, so verl's single-turn agent can use the file too; `agent_name`
    selects the multi-turn agent loop, and `extra_info.task` is the task of its episode.

    Args:
        path: the file.
        env: the environment of the tasks.
        tasks: pairs of split and task id; the split ends the row's `data_source`, by which verl groups its metrics.
        form: form of the prompts.
    """
    name = (env.spec.id if env.spec else type(env.unwrapped).__name__).rsplit("/", 1)[-1].lower()
    rows: list[TableRow] = []
    for index, (split, task) in enumerate(tasks):
        observation, info = env.reset(options={"task": task})
        state = EpisodeHistory(info.get("task", ""), 0).state(observation, info.get("admissible_actions"))
        rows.append(
            {
                "data_source": f"{name}/{split}",
                "agent_name": AGENT_NAME,
                "prompt": form.policy_prompt(state),
                "ability": "agent",
                "reward_model": {"style": "rule", "ground_truth": ""},
                "extra_info": {"index": index, "task": task, "split": split},
            }
        )
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return len(rows)


def says_instruction(path: Path) -> bool:
    """Return whether the first row of a task file has `extra_info.instruction`; a file that cannot be read has none."""
    try:
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=1), None)
    except (OSError, pa.ArrowInvalid):
        return False
    (row,) = [{}] if batch is None or not batch.num_rows else batch.to_pylist()
    extra_info = row.get("extra_info")
    return isinstance(extra_info, dict) and bool(extra_info.get("instruction"))
