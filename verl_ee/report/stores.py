"""The content of a transition store: counts, shares worth a look, and samples in full."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import (
    BRANCH_SCHEMA,
    BRANCHES,
    TRANSITION_SCHEMA,
    TRANSITIONS,
    Branch,
    Transition,
    read_provenance,
    transition_of,
)
from verl_ee.report.columns import aligned


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
    transitions, branches = _read_transitions(folder), _read_branches(folder)
    _check_complete(folder, branches, transitions)
    states = {branch.ref for branch in branches}
    trajectories = {ref.trajectory for ref in states}
    counts = f"{len(trajectories)} trajectories, {len(states)} states"
    lines = [
        f"store: {folder}",
        *(f"{key}: {value}" for key, value in provenance.items() if key != "schema"),
        "",
        f"{counts}, {len(branches)} branches, {len(transitions)} transitions",
        "",
        _proposer_table(branches, transitions),
        "",
        f"branches that point to a transition of another: {len(branches) - len(transitions)}",
        f"states in which all outcomes are equal: {_uniform_states(branches, transitions)} of {len(states)}",
    ]
    chosen = random.Random(seed).sample(branches, min(samples, len(branches)))
    return "\n".join([*lines, *(_sample_text(branch, transitions[branch.transition]) for branch in chosen)])


def _read_transitions(folder: Path) -> dict[str, Transition]:
    """Return the transitions by key."""
    rows = read_table(folder / TRANSITIONS, TRANSITION_SCHEMA)
    return {row["key"]: transition_of(row) for row in rows}


def _read_branches(folder: Path) -> list[Branch]:
    return [
        Branch(
            ref=StateRef(row["trajectory"], row["step"]),
            order=row["order"],
            proposer=row["proposer"],
            policy=row["policy"],
            sampling=row["sampling"],
            transition=row["key"],
        )
        for row in read_table(folder / BRANCHES, BRANCH_SCHEMA)
    ]


def _check_complete(folder: Path, branches: Sequence[Branch], transitions: Mapping[str, Transition]) -> None:
    for branch in branches:
        if branch.transition not in transitions:
            raise StoreError(
                f"{folder / BRANCHES}: transition {branch.transition[:12]} is not in {TRANSITIONS}. Collect again."
            )


def _proposer_table(branches: Sequence[Branch], transitions: Mapping[str, Transition]) -> str:
    by_proposer: dict[str, list[Transition]] = defaultdict(list)
    for branch in branches:
        by_proposer[branch.proposer].append(transitions[branch.transition])
    rows = [["proposer", "branches", "refused %", "no change %", "ends %", "characters"]]
    for proposer in sorted(by_proposer, key=lambda name: (name != EXPERT, name)):
        rows.append([proposer, *_cells_of(by_proposer[proposer], transitions)])
    return (
        f"{aligned(rows)}\nrefused: of those for which the environment says whether it took the action\n"
        "no change: of those whose state is the outcome of a transition in the store"
    )


def _cells_of(group: Sequence[Transition], transitions: Mapping[str, Transition]) -> list[str]:
    """Return the cells of one proposer's transitions."""
    # A state has the key of the transition that leads to it.
    before_and_after = [
        (transitions[transition.state].outcome.observation, transition.outcome.observation)
        for transition in group
        if transition.state in transitions
    ]
    unchanged = sum(before == after for before, after in before_and_after)
    told = [transition.outcome for transition in group if transition.outcome.valid is not None]
    refused = sum(outcome.refused for outcome in told)
    ends = sum(transition.outcome.done for transition in group)
    length = sum(len(transition.outcome.observation) for transition in group) / len(group)
    return [
        str(len(group)),
        _percent(refused, len(told)),
        _percent(unchanged, len(before_and_after)),
        _percent(ends, len(group)),
        f"{length:.0f}",
    ]


def _uniform_states(branches: Sequence[Branch], transitions: Mapping[str, Transition]) -> int:
    """Return the number of states with several branches that all have the same outcome."""
    observations: dict[StateRef, Counter[str]] = defaultdict(Counter)
    for branch in branches:
        observations[branch.ref][transitions[branch.transition].outcome.observation] += 1
    return sum(len(counts) == 1 and counts.total() > 1 for counts in observations.values())


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
