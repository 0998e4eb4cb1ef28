"""Executed branches on disk: what happened, and who asked for it.

Two Parquet tables. *transitions* holds facts, one row per (environment, task, action prefix, action) under the hash of
these; *branches* says which expert state an action was tried from, and points to the fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import StoreError
from verl_ee.experience.files import atomic, digest

VERSION = 1
TRANSITIONS, BRANCHES = "transitions.parquet", "branches.parquet"


@dataclass(frozen=True)
class Transition:
    """A fact about an environment.

    Attributes:
        key: hash of everything before the outcome.
        task: task id.
        prefix: actions that lead from reset to the state.
        action: the action that was executed there.
        observation: what came back.
        valid: whether the environment took the action.
        done: whether the episode ended with it.
    """

    key: str
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
        key: the transition.
    """

    trajectory: int
    step: int
    order: int
    proposer: str
    key: str


@dataclass(frozen=True)
class Outcome:
    """A branch together with its transition, as training reads it."""

    trajectory: int
    step: int
    action: str
    observation: str
    valid: bool
    proposer: str
    transition: str


def key_of(environment: Mapping[str, Any], task: str, prefix: Sequence[str], action: str) -> str:
    """Return the hash of a transition's left side.

    The environment's id, version and arguments are part of it: the same action in another world is another fact.
    """
    return digest([dict(environment), task, list(prefix), action])


def write_store(
    folder: Path, transitions: Iterable[Transition], branches: Iterable[Branch], provenance: Mapping[str, str]
) -> None:
    """Write both tables, sorted, so that equal content gives equal bytes; each file appears whole or not at all."""
    facts = sorted({t.key: t for t in transitions}.values(), key=lambda t: t.key)
    asked = sorted(branches, key=lambda b: (b.trajectory, b.step, b.order))
    _write(folder / TRANSITIONS, [asdict(t) | {"prefix": list(t.prefix)} for t in facts], _TRANSITIONS, provenance)
    _write(folder / BRANCHES, [asdict(b) for b in asked], _BRANCHES, provenance)


def read_outcomes(folder: Path) -> list[Outcome]:
    """Read the branches of a store with their transitions, in the order of the expert file.

    Raises:
        StoreError: if a file is missing, broken, of a newer version, or points to a transition that is not there.
    """
    facts = {row["key"]: row for row in _read(folder / TRANSITIONS, _TRANSITIONS)}
    outcomes = []
    for row in _read(folder / BRANCHES, _BRANCHES):
        fact = facts.get(row["key"])
        if fact is None:
            raise StoreError(
                f"{folder / BRANCHES}: transition {row['key'][:12]} is not in {TRANSITIONS}. Collect again."
            )
        outcomes.append(
            Outcome(
                row["trajectory"],
                row["step"],
                fact["action"],
                fact["observation"],
                fact["valid"],
                row["proposer"],
                row["key"],
            )
        )
    return outcomes


_TRANSITIONS = pa.schema(
    [
        ("key", pa.string()),
        ("task", pa.string()),
        ("prefix", pa.list_(pa.string())),
        ("action", pa.string()),
        ("observation", pa.string()),
        ("valid", pa.bool_()),
        ("done", pa.bool_()),
    ]
)
_BRANCHES = pa.schema(
    [
        ("trajectory", pa.int32()),
        ("step", pa.int32()),
        ("order", pa.int32()),
        ("proposer", pa.string()),
        ("key", pa.string()),
    ]
)


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, provenance: Mapping[str, str]) -> None:
    named = {f"verl_ee.{key}": value for key, value in sorted(provenance.items())}
    metadata = {"verl_ee.schema": str(VERSION), **named}
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. Collect again.") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is not a Parquet file that can be read ({error}). Collect again.") from None
    version = (table.schema.metadata or {}).get(b"verl_ee.schema", b"").decode()
    if not version.isdigit() or int(version) > VERSION:
        raise StoreError(
            f"{path} has schema version {version or '(none)'}; this verl_ee reads up to {VERSION}. Update it."
        )
    if set(table.column_names) != set(schema.names):
        raise StoreError(f"{path} has columns {table.column_names}; expected {schema.names}. Collect again.")
    return table.to_pylist()
