"""What a transition store holds: counts, shares worth a look, and samples in full."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.store import BRANCH_SCHEMA, BRANCHES, TRANSITION_SCHEMA, TRANSITIONS, read_provenance
from verl_ee.report.tables import aligned

Row = Mapping[str, Any]


def store_text(folder: Path, samples: int = 0, seed: int = 0) -> str:
    """Return a description of a store.

    Args:
        folder: that `verl-ee collect` or a run has written.
        samples: branches shown in full, drawn uniformly.
        seed: of the draw.

    Raises:
        StoreError: if the store cannot be read.
    """
    provenance = read_provenance(folder)
    facts = {row["key"]: row for row in read_table(folder / TRANSITIONS, TRANSITION_SCHEMA)}
    branches = read_table(folder / BRANCHES, BRANCH_SCHEMA)
    states = {(row["trajectory"], row["step"]) for row in branches}
    trajectories = {row["trajectory"] for row in branches}
    lines = [f"store: {folder}", *(f"{key}: {value}" for key, value in provenance.items() if key != "schema"), ""]
    lines.append(
        f"{len(trajectories)} trajectories, {len(states)} states, {len(branches)} branches, {len(facts)} transitions"
    )
    lines += ["", _by_proposer(branches, facts)]
    lines += ["", f"branches that point to a transition of another: {len(branches) - len(facts)}"]
    lines.append(f"states in which all outcomes are equal: {_uniform_states(branches, facts)} of {len(states)}")
    chosen = random.Random(seed).sample(branches, min(samples, len(branches)))
    return "\n".join(lines + [_sample(branch, facts[branch["key"]]) for branch in chosen])


def _by_proposer(branches: Iterable[Row], facts: Mapping[str, Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    for branch in branches:
        groups[branch["proposer"]].append(facts[branch["key"]])
    header = ["proposer", "branches", "refused %", "no change %", "ends %", "characters"]
    rows = [header]
    for proposer in sorted(groups, key=lambda name: (name != EXPERT, name)):
        group = groups[proposer]
        # A state has the key of the transition that leads to it.
        placed = [fact for fact in group if fact["state"] in facts]
        same = sum(facts[fact["state"]]["observation"] == fact["observation"] for fact in placed)
        length = sum(len(fact["observation"]) for fact in group) / len(group)
        refused, ends = sum(not fact["valid"] for fact in group), sum(fact["done"] for fact in group)
        shares = [_share(refused, len(group)), _share(same, len(placed)), _share(ends, len(group))]
        rows.append([proposer, str(len(group)), *shares, f"{length:.0f}"])
    return aligned(rows) + "\nno change: of those whose state is the outcome of a transition in the store"


def _uniform_states(branches: Iterable[Row], facts: Mapping[str, Row]) -> int:
    outcomes: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for branch in branches:
        outcomes[branch["trajectory"], branch["step"]][facts[branch["key"]]["observation"]] += 1
    return sum(len(found) == 1 and found.total() > 1 for found in outcomes.values())


def _sample(branch: Row, fact: Row) -> str:
    marks = [mark for mark, shown in (("refused", not fact["valid"]), ("ends the episode", fact["done"])) if shown]
    title = f"--- trajectory {branch['trajectory']}, step {branch['step']}, by {branch['proposer']}"
    origin = " ".join(filter(None, [branch["policy"], branch["sampling"]]))
    return "\n".join(
        [
            "",
            f"{title}{f' ({origin})' if origin else ''}: {fact['key'][:12]}",
            f"task {fact['task']}, after {list(fact['prefix'])}",
            f"> {fact['action']}{f'   [{chr(44).join(marks)}]' if marks else ''}",
            fact["observation"],
        ]
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
