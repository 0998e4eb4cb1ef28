"""The proposal journal: the first proposals of a state, the sum of its usage."""

from __future__ import annotations

from pathlib import Path

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
