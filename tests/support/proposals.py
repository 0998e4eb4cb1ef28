"""States whose alternatives are chosen, and the samples of a policy in them."""

from __future__ import annotations

from typing import Any

from verl_ee.config import CollectConfig
from verl_ee.experience.proposers import Proposal, ProposalRequest
from verl_ee.experience.state_ref import StateRef
from verl_ee.prompts.state import State

LISTED = ("look", "go to desk 1", "open drawer 1", "open drawer 10", "take mug 1 from shelf 1", "inventory")
EXPERT = "open drawer 1"


def config(**values: Any) -> CollectConfig:
    return CollectConfig.model_validate({"k": 3} | values)


def request(listed: tuple[str, ...] | None = LISTED, step: int = 4) -> ProposalRequest:
    return ProposalRequest(StateRef(2, step), "train/7", State("find a mug", (), "A room.", listed), EXPERT)


def drawn(*actions: str) -> list[Proposal]:
    """The samples of a policy, draw by draw."""
    return [Proposal(action, "policy", "model@base", f'{{"draw": {number}}}') for number, action in enumerate(actions)]


def actions(proposals: tuple[Proposal, ...]) -> list[str]:
    return [proposal.action for proposal in proposals]
