"""Counts of alternatives: how many were possible, how many a policy wrote itself, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from verl_ee.config import CollectConfig
from verl_ee.envs import CanonicalForm
from verl_ee.experience.proposers import LISTED, Proposal, allowed_alternatives, other_actions


@dataclass(frozen=True)
class AlternativeCounts:
    """Counts over states.

    Attributes:
        possible: alternatives that were possible: K, or the other listed actions where they are fewer.
        own: how many of these the policy wrote itself.
        filled: how many of these there are, listed actions that filled up included.
        responses: responses that were sampled.
        without_action: how many of them held no action.
        unasked: states in which a policy was to be asked, whose prompt was too long.
    """

    possible: int = 0
    own: int = 0
    filled: int = 0
    responses: int = 0
    without_action: int = 0
    unasked: int = 0

    def __add__(self, other: AlternativeCounts) -> AlternativeCounts:
        return AlternativeCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def own_share(self) -> float:
        """Share of the possible alternatives that the policy wrote itself; 1 where none were possible."""
        return self.own / self.possible if self.possible else 1.0

    @property
    def filled_share(self) -> float:
        """Share of the possible alternatives that there are; 1 where none were possible."""
        return self.filled / self.possible if self.possible else 1.0

    @property
    def text(self) -> str:
        """How many of the possible alternatives there are, and how many a policy wrote itself if one did."""
        text = f"{self.filled:,} of {self.possible:,} possible"
        if self.responses:
            silent = (
                f"{100 * self.without_action / self.responses:.1f} % of {self.responses:,} responses hold no action"
            )
            text += f", {self.own:,} by the policy itself ({silent})"
        return text + (f", {self.unasked:,} states with too long a prompt" if self.unasked else "")


def counts_of(
    proposals: Sequence[Proposal],
    listed: Sequence[str] | None,
    expert_action: str,
    config: CollectConfig,
    canonical: CanonicalForm,
) -> AlternativeCounts:
    """Return the counts of one state, without those of responses.

    Args:
        proposals: its alternatives.
        listed: actions that the environment lists there; None where that is not known, or it lists none.
        expert_action: the expert's action, which is no alternative.
        config: K, and where alternatives come from.
        canonical: canonical form of an action.
    """
    possible = config.k
    if listed is not None:
        allowed = allowed_alternatives(listed, expert_action, config)
        others = len(other_actions(allowed, expert_action, canonical))
        possible = others if config.alternatives == "exhaustive" and config.k else min(config.k, others)
    elif config.alternatives in LISTED and proposals:
        # Only the worker has seen the list, and took all that it allows.
        possible = min(config.k, len(proposals))
    own = sum(proposal.proposer not in LISTED for proposal in proposals)
    return AlternativeCounts(possible, min(own, possible), min(len(proposals), possible))
