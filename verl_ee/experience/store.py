"""Executed branches on disk: what happened, and who asked for it.

Two Parquet tables. *transitions* holds facts, one row per (environment, task, seed, owner, action prefix, action) under
the hash of these; *branches* says which expert state an action was tried from, and points to the fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import digest
from verl_ee.experience.files.parquet import read_metadata, read_table, write_table
from verl_ee.prompts.actions import canonical

TRANSITIONS, BRANCHES = "transitions.parquet", "branches.parquet"


@dataclass(frozen=True)
class Transition:
    """A fact about an environment.

    Attributes:
        key: hash of everything before the outcome.
        state: hash of everything before the action; equal for all actions from one state.
        task: task id.
        prefix: actions that lead from reset to the state.
        action: the action that was executed there.
        observation: what came back.
        valid: whether the environment took the action.
        done: whether the episode ended with it.
    """

    key: str
    state: str
    task: str
    prefix: tuple[str, ...]
    action: str
    observation: str
    valid: bool
    done: bool


@dataclass(frozen=True)
class Branch:
    """Who asked for a transition.

    Attributes:
        trajectory: index of the expert trajectory.
        step: index of the step whose state was branched.
        order: position among the branches of the state; the expert's own action comes first.
        proposer: `expert`, or the proposer of the alternative.
        policy: version of the policy that the alternative was sampled from, empty where none was.
        sampling: how, as JSON, empty where nothing was sampled.
        key: the transition.
    """

    trajectory: int
    step: int
    order: int
    proposer: str
    policy: str
    sampling: str
    key: str


@dataclass(frozen=True)
class ExecutedBranch:
    """A branch together with its transition, as training reads it."""

    trajectory: int
    step: int
    action: str
    observation: str
    valid: bool
    done: bool
    proposer: str
    transition: str


def state_key(
    environment: Mapping[str, Any], task: str, seed: int | None, prefix: Sequence[str], owner: str = ""
) -> str:
    """Return the hash of a state.

    The environment's id, version and arguments are part of it: the same actions in another world lead elsewhere.

    Args:
        environment: id, version and arguments.
        task: task id.
        seed: of the reset.
        prefix: actions since the reset; two that are equal in canonical form count as one.
        owner: whom the state belongs to alone; empty where all who reach it share it.
    """
    state = digest([dict(environment), task, seed, owner])
    for action in prefix:
        state = transition_key(state, action)
    return state


def transition_key(state: str, action: str) -> str:
    """Return the hash of a transition, its state and the action's canonical form; the state it leads to has it too."""
    return digest([state, canonical(action)])


def write_store(
    folder: Path, transitions: Iterable[Transition], branches: Iterable[Branch], provenance: Mapping[str, str]
) -> None:
    """Write both tables, sorted, so that equal content gives equal bytes; each file appears whole or not at all."""
    facts = sorted({t.key: t for t in transitions}.values(), key=lambda t: t.key)
    asked = sorted(branches, key=lambda b: (b.trajectory, b.step, b.order))
    write_table(folder / TRANSITIONS, [row_of(fact) for fact in facts], TRANSITION_SCHEMA, provenance)
    write_table(folder / BRANCHES, [row_of(branch) for branch in asked], BRANCH_SCHEMA, provenance)


def read_provenance(folder: Path) -> dict[str, str]:
    """Return what identifies the collection that made a store.

    Raises:
        StoreError: if the store cannot be read.
    """
    return read_metadata(folder / BRANCHES)


def read_branches(folder: Path) -> list[ExecutedBranch]:
    """Read the branches of a store with their transitions, in the order of the expert file.

    Raises:
        StoreError: if a file is missing, broken, of a newer version, or points to a transition that is not there.
    """
    facts = {row["key"]: row for row in read_table(folder / TRANSITIONS, TRANSITION_SCHEMA)}
    outcomes = []
    for row in read_table(folder / BRANCHES, BRANCH_SCHEMA):
        fact = facts.get(row["key"])
        if fact is None:
            raise StoreError(
                f"{folder / BRANCHES}: transition {row['key'][:12]} is not in {TRANSITIONS}. Collect again."
            )
        outcomes.append(
            ExecutedBranch(
                row["trajectory"],
                row["step"],
                fact["action"],
                fact["observation"],
                fact["valid"],
                fact["done"],
                row["proposer"],
                row["key"],
            )
        )
    return outcomes


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


def row_of(item: Transition | Branch) -> dict[str, Any]:
    """Return a row of the item's table."""
    row = dict(vars(item))
    if isinstance(item, Transition):
        row["prefix"] = list(item.prefix)
    return row
