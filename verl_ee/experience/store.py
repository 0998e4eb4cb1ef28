"""The transition store: executed branches on disk, in two Parquet tables.

*transitions* holds one row per (environment, task, seed, owner, action prefix, action), under the hash of these.
*branches* says which expert state an action was tried from, and points to its transition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from verl_ee.envs import without_module
from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import digest
from verl_ee.experience.files.executed_branches import (
    BRANCH_COLUMNS,
    OUTCOME_COLUMNS,
    ExecutedBranch,
    executed_branches,
    outcome_of,
)
from verl_ee.experience.files.lazy_sequence import LazySequence
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_columns, read_metadata, write_table
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

TRANSITIONS, BRANCHES = "transitions.parquet", "branches.parquet"
TRANSITION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("state", pa.string()),
        ("task", pa.string()),
        ("prefix", pa.list_(pa.string())),
        ("action", pa.string()),
        ("observation", pa.string()),
        ("valid", pa.bool_()),
        ("done", pa.bool_()),
        ("outcome_class", pa.string()),
    ]
)
BRANCH_SCHEMA = pa.schema(
    [
        ("trajectory", pa.int32()),
        ("step", pa.int32()),
        ("order", pa.int32()),
        ("proposer", pa.string()),
        ("policy", pa.string()),
        ("sampling", pa.string()),
        ("key", pa.string()),
    ]
)


@dataclass(frozen=True)
class Transition:
    """An action in a state of an environment, and its outcome.

    Attributes:
        key: hash of everything before the outcome.
        state: hash of everything before the action; equal for all actions from one state.
        task: id of the task.
        prefix: actions that lead from the reset to the state.
        outcome: the action that was executed there, and what came back.
    """

    key: str
    state: str
    task: str
    prefix: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Branch:
    """An action that was tried from an expert state; a row of the table of branches.

    Attributes:
        ref: the expert state.
        order: position among the branches of the state; the expert's own action comes first.
        proposer: `expert`, or the proposer of the alternative.
        policy: version of the policy that the alternative was sampled from, empty where none was.
        sampling: how it was sampled, as JSON, empty where nothing was.
        transition: key of the transition.
    """

    ref: StateRef
    order: int
    proposer: str
    policy: str
    sampling: str
    transition: str


def state_key(
    environment: Mapping[str, object], task: str, seed: int | None, prefix: Sequence[str], owner: str = ""
) -> str:
    """Return the hash of a state.

    The environment's id, version and arguments are part of it: the same actions in another world lead elsewhere. The
    module in front of an id is not.

    Args:
        environment: id, version and arguments.
        task: id of the task.
        seed: seed of the reset.
        prefix: canonical forms of the actions since the reset.
        owner: the only collection that may use the state; empty where all share it.
    """
    world = {**environment, "id": without_module(str(environment["id"]))} if "id" in environment else dict(environment)
    state = digest([world, task, seed, owner])
    for action in prefix:
        state = transition_key(state, action)
    return state


def transition_key(state: str, action: str) -> str:
    """Return the hash of a transition, which the state that it leads to has too.

    Args:
        state: hash of its state.
        action: the action's canonical form.
    """
    return digest([state, action])


def write_store(
    folder: Path, transitions: Iterable[Transition], branches: Iterable[Branch], provenance: Mapping[str, str]
) -> None:
    """Write both tables, sorted, so that equal content gives equal bytes; each file appears whole or not at all.

    Args:
        folder: folder of the store.
        transitions: the transitions; one that comes several times is written once.
        branches: the branches, in any order.
        provenance: identifies the collection (see `verl_ee.experience.provenance`).
    """
    distinct = {transition.key: transition for transition in transitions}
    transition_rows = [transition_row(distinct[key]) for key in sorted(distinct)]
    in_order = sorted(branches, key=lambda branch: (branch.ref.trajectory, branch.ref.step, branch.order))
    branch_rows = [_branch_row(branch) for branch in in_order]
    write_table(folder / TRANSITIONS, transition_rows, TRANSITION_SCHEMA, provenance)
    write_table(folder / BRANCHES, branch_rows, BRANCH_SCHEMA, provenance)


def read_provenance(folder: Path) -> dict[str, str]:
    """Return what identifies the collection that made a store.

    Raises:
        StoreError: if the store cannot be read.
    """
    return read_metadata(folder / BRANCHES)


def read_branches(folder: Path) -> LazySequence[ExecutedBranch]:
    """Read the branches of a store with their outcomes, in the order of the expert file.

    Raises:
        StoreError: if a file is missing, broken, of another version, or points to a transition that is not there.
    """
    transitions = read_columns(folder / TRANSITIONS, TRANSITION_SCHEMA, ("key", *OUTCOME_COLUMNS))
    branches = read_columns(folder / BRANCHES, BRANCH_SCHEMA, BRANCH_COLUMNS)
    return executed_branches(branches, transitions, rows_of_transitions(folder, branches, transitions))


def rows_of_transitions(folder: Path, branches: pa.Table, transitions: pa.Table) -> pa.Array:
    """Return for each branch the row of its transition.

    Args:
        folder: folder of the store, for messages.
        branches: branches with the column `key`.
        transitions: transitions with the column `key`.

    Raises:
        StoreError: if a branch points to a transition that is not there.
    """
    keys = branches.column("key").combine_chunks()
    rows = pc.index_in(keys, value_set=transitions.column("key").combine_chunks())
    if rows.null_count:
        missing = keys.filter(pc.is_null(rows))[0].as_py()
        raise StoreError(f"{folder / BRANCHES}: transition {missing[:12]} is not in {TRANSITIONS}. Collect again.")
    return rows


def transition_row(transition: Transition) -> TableRow:
    """Return the row of a transition, with the columns of `TRANSITION_SCHEMA`."""
    return {
        "key": transition.key,
        "state": transition.state,
        "task": transition.task,
        "prefix": list(transition.prefix),
        **vars(transition.outcome),
    }


def transition_of(row: TableRow) -> Transition:
    """Return the transition of a row with the columns of `TRANSITION_SCHEMA`."""
    return Transition(row["key"], row["state"], row["task"], tuple(row["prefix"]), outcome_of(row))


def branch_of(row: TableRow) -> Branch:
    """Return the branch of a row with the columns of `BRANCH_SCHEMA`."""
    ref = StateRef(row["trajectory"], row["step"])
    return Branch(ref, row["order"], row["proposer"], row["policy"], row["sampling"], row["key"])


def _branch_row(branch: Branch) -> TableRow:
    return {
        "trajectory": branch.ref.trajectory,
        "step": branch.ref.step,
        "order": branch.order,
        "proposer": branch.proposer,
        "policy": branch.policy,
        "sampling": branch.sampling,
        "key": branch.transition,
    }
