"""The proposal journal: the first proposals of a state, the sum of its usage."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from verl_ee.experience.branching.protocol import Usage
from verl_ee.experience.collecting.proposal_journal import DecidedState, ProposalJournal
from verl_ee.experience.proposers import Proposal
from verl_ee.experience.state_ref import StateRef


def test_the_journal_keeps_proposals_word_by_word(tmp_path: Path) -> None:
    proposals = (Proposal("press 1", "policy", "17", '{"temperature": 0.5}'), Proposal(" 'é' ", "other"))
    journal = ProposalJournal(tmp_path)
    first, second = StateRef(3, 2), StateRef(3, 4)
    journal.add(first, DecidedState(proposals, Usage(5, 1)))
    journal.flush()
    journal.add(second, DecidedState((), Usage()))
    journal.add(first, DecidedState(proposals, Usage(2, 0)))
    journal.flush()
    for now in (journal, ProposalJournal(tmp_path)):
        assert now.decided == {first: DecidedState(proposals, Usage(7, 1)), second: DecidedState((), Usage())}


def test_a_part_of_the_version_before_counts_no_responses(tmp_path: Path) -> None:
    """An unfinished collection of version 0.2 goes on."""
    proposals = (Proposal("press 1", "policy", "17", "{}"),)
    journal, ref = ProposalJournal(tmp_path), StateRef(3, 2)
    journal.add(ref, DecidedState(proposals, Usage(5, 1), responses=4, without_action=1))
    journal.flush()
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path).drop_columns(["responses", "without_action"])
    pq.write_table(table.replace_schema_metadata({b"verl_ee.schema": b"2"}), path)
    assert ProposalJournal(tmp_path).decided == {ref: DecidedState(proposals, Usage(5, 1), 0, 0)}
