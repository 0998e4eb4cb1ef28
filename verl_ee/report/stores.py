"""The content of a transition store: counts, shares worth a look, and samples in full."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_ee.experience.files.mapped_tables import TableRows
from verl_ee.experience.files.parquet import read_columns
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.store import (
    BRANCH_SCHEMA,
    BRANCHES,
    TRANSITION_SCHEMA,
    TRANSITIONS,
    Branch,
    Transition,
    branch_of,
    read_provenance,
    rows_of_transitions,
    transition_of,
)
from verl_ee.report.columns import aligned

_STATE = ("trajectory", "step")
_MEASURED = ("refused", "unchanged", "done", "length")
"""Columns of `_measured`."""


def store_text(folder: Path, samples: int = 0, seed: int = 0) -> str:
    """Return a description of a store.

    Args:
        folder: folder that `verl-ee collect` or a run has written.
        samples: branches shown in full, drawn uniformly.
        seed: seed of the draw.

    Raises:
        StoreError: if the store cannot be read.
    """
    provenance = read_provenance(folder)
    transitions = read_columns(folder / TRANSITIONS, TRANSITION_SCHEMA, TRANSITION_SCHEMA.names)
    branches = read_columns(folder / BRANCHES, BRANCH_SCHEMA, BRANCH_SCHEMA.names)
    rows = rows_of_transitions(folder, branches, transitions)
    hashes = _hashes(transitions)
    states = _states(branches, hashes, rows)
    counts = f"{pc.count_distinct(states['trajectory']).as_py()} trajectories, {states.num_rows} states"
    lines = [
        f"store: {folder}",
        *(f"{key}: {value}" for key, value in provenance.items() if key != "schema"),
        "",
        f"{counts}, {branches.num_rows} branches, {transitions.num_rows} transitions",
        "",
        _proposer_table(branches, _measured(transitions, hashes).take(rows)),
        "",
        f"branches that point to a transition of another: {branches.num_rows - transitions.num_rows}",
        f"states in which all outcomes are equal: {_uniform_states(states)} of {states.num_rows}",
    ]
    drawn = random.Random(seed).sample(range(branches.num_rows), min(samples, branches.num_rows))
    taken, outcomes = TableRows(branches).at(drawn), TableRows(transitions).at(rows.to_numpy()[drawn])
    texts = (
        _sample_text(branch_of(branch), transition_of(transition))
        for branch, transition in zip(taken, outcomes, strict=True)
    )
    return "\n".join([*lines, *texts])


def _states(branches: pa.Table, hashes: pa.Array, rows: pa.Array) -> pa.Table:
    """Return for each state its branches (`seen_count`) and its different observations (`seen_count_distinct`)."""
    seen = branches.select(_STATE).append_column("seen", hashes.take(rows))
    return seen.group_by(list(_STATE)).aggregate([("seen", "count"), ("seen", "count_distinct")])


def _hashes(transitions: pa.Table) -> pa.Array:
    """Return a hash of each observation, in 64 bits: texts would be copied for every branch."""
    digests = (
        hashlib.blake2b((text.as_py() or "").encode(), digest_size=8).digest()
        for chunk in transitions["observation"].chunks
        for text in chunk
    )
    return pa.array(np.fromiter((int.from_bytes(value, "little", signed=True) for value in digests), np.int64))


def _uniform_states(states: pa.Table) -> int:
    """Return the number of states with several branches that all have the same outcome."""
    several = pc.greater(states["seen_count"], 1)
    return pc.sum(pc.and_(several, pc.equal(states["seen_count_distinct"], 1))).as_py() or 0


def _measured(transitions: pa.Table, hashes: pa.Array) -> pa.Table:
    """Return numbers of each transition, null where the store does not tell."""
    keys = transitions["key"].combine_chunks()
    # A state has the key of the transition that leads to it.
    before = hashes.take(pc.index_in(transitions["state"].combine_chunks(), value_set=keys))
    columns = (
        pc.invert(transitions["valid"]),
        pc.equal(before, hashes),
        transitions["done"],
        pc.utf8_length(transitions["observation"]),
    )
    return pa.table(dict(zip(_MEASURED, columns, strict=True)))


def _proposer_table(branches: pa.Table, measured: pa.Table) -> str:
    sums = [(name, how) for name in _MEASURED for how in ("sum", "count")]
    groups = measured.append_column("proposer", branches["proposer"]).group_by("proposer").aggregate(sums).to_pylist()
    rows = [["proposer", "branches", "refused %", "no change %", "ends %", "characters"]]
    for group in sorted(groups, key=lambda group: (group["proposer"] != EXPERT, group["proposer"])):
        count = group["length_count"]
        shares = [_percent(group[f"{name}_sum"], group[f"{name}_count"]) for name in ("refused", "unchanged", "done")]
        rows.append([group["proposer"], str(count), *shares, f"{group['length_sum'] / count:.0f}"])
    return (
        f"{aligned(rows)}\nrefused: of those for which the environment says whether it took the action\n"
        "no change: of those whose state is the outcome of a transition in the store"
    )


def _sample_text(branch: Branch, transition: Transition) -> str:
    origin = " ".join(text for text in (branch.policy, branch.sampling) if text)
    title = f"--- trajectory {branch.ref.trajectory}, step {branch.ref.step}, by {branch.proposer}"
    if origin:
        title += f" ({origin})"
    action = f"> {transition.outcome.action}"
    marks = []
    if transition.outcome.refused:
        marks.append("refused")
    if transition.outcome.done:
        marks.append("ends the episode")
    if transition.outcome.outcome_class:
        marks.append(f"class {transition.outcome.outcome_class}")
    if marks:
        action += f"   [{', '.join(marks)}]"
    return "\n".join(
        [
            "",
            f"{title}: {transition.key[:12]}",
            f"task {transition.task}, after {list(transition.prefix)}",
            action,
            transition.outcome.observation,
        ]
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
