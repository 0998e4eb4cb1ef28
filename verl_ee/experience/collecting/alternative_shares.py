"""Shares of the possible alternatives: that a policy wrote itself, and that there are in the end. Both have budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verl_ee.config import CollectConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import BranchError
from verl_ee.experience.collecting.alternative_counts import AlternativeCounts
from verl_ee.experience.proposers import (
    EXPERT_ACTION,
    EXPERT_TOOL,
    LISTED,
    NO_ACTION,
    REPEATED,
    UNLISTED,
    UnusedResponse,
)

SHOWN = 3
"""Responses that a message shows."""
EARLY_STATES = 64
"""States after which a policy is judged for the first time, by half of what it has to reach in the end."""
_SAMPLE_MORE = "Sample at higher {temperatures}, or allow more {draws}."
CAUSES = {
    NO_ACTION: f"Most of these responses hold no action. Either prompts do not say how to answer (set "
    f"{ROOT}.prompt.instruction), or responses are cut off at data.max_response_length, or the model cannot follow.",
    UNLISTED: "Most of these actions are not among those that the environment lists. Let prompts say that a listed "
    "action is to be copied, or keep what is not listed with {unlisted}=keep.",
    EXPERT_ACTION: f"Most of these responses take the expert's own action. {_SAMPLE_MORE}",
    EXPERT_TOOL: "Most of these responses use the expert's tool, which {withhold_expert_tool} leaves out.",
    REPEATED: f"Most of these responses repeat an action. {_SAMPLE_MORE}",
}
"""The likely cause, by the most frequent reason why a response gives no alternative."""
_TOO_LONG = "In {states} states nothing was sampled: their prompts are longer than data.max_prompt_length."
_NO_LIST = "The environment lists no actions in most states: let it list them, or take alternatives=policy in a job."


class AlternativeShares:
    """Counts what a policy proposed, and judges a set of branches.

    Attributes:
        proposed: counts of the states that a proposer has decided in this process.
    """

    def __init__(self, config: CollectConfig) -> None:
        """Begin without a state.

        Args:
            config: the shares that have to be reached.
        """
        self._config = config
        self.proposed = AlternativeCounts()
        self._states = 0
        self._reasons: Counter[str] = Counter()
        self._unused: dict[str, list[UnusedResponse]] = {}

    def add(self, counts: AlternativeCounts, unused: Sequence[UnusedResponse] = ()) -> None:
        """Count the alternatives of a state, and the responses that gave none."""
        self.proposed += counts
        self._states += 1
        for response in unused:
            self._reasons[response.reason] += 1
            kept = self._unused.setdefault(response.reason, [])
            if len(kept) < SHOWN:
                kept.append(response)

    def check_early(self) -> None:
        """Stop a policy that is far from what it has to write, before all states have been sampled.

        Raises:
            BranchError: as `check`.
        """
        if self._is_policy and self._states >= EARLY_STATES:
            self._check_own(self.proposed, self._config.min_own / 2, f" after {self._states} states")

    def check(self, counts: AlternativeCounts) -> None:
        """Refuse a set with too few alternatives.

        Args:
            counts: counts over all of its states.

        Raises:
            BranchError: with the share, the likely cause and three responses.
        """
        if self._is_policy:
            self._check_own(counts, self._config.min_own)
        least = self._config.min_filled
        if counts.filled_share < least:
            raise self._error(
                f"{counts.filled} of {counts.possible} alternatives that were possible were found, fewer than "
                f"{self._config.key('min_filled')}={least:g} of them.",
                counts,
            )

    @property
    def _is_policy(self) -> bool:
        return self._config.alternatives not in LISTED

    def _check_own(self, counts: AlternativeCounts, least: float, when: str = "") -> None:
        if counts.own_share >= least:
            return
        raise self._error(
            f"The policy itself wrote {counts.own} of {counts.possible} alternatives that were possible{when} "
            f"({100 * counts.own_share:.1f} %), fewer than {self._config.key('min_own')}={self._config.min_own:g} asks "
            f"for; {counts.without_action} of {counts.responses} responses hold no action.",
            counts,
        )

    def _error(self, problem: str, counts: AlternativeCounts) -> BranchError:
        advice = "; another prompt or sampling needs another folder" if self._is_policy else ""
        return BranchError(f"{problem} {self._cause(counts)} All results so far are kept{advice}.{self._shown()}")

    def _cause(self, counts: AlternativeCounts) -> str:
        if not self._is_policy:
            return _NO_LIST
        if counts.unasked * self._config.k > (counts.possible - counts.own) / 2:
            return _TOO_LONG.format(states=counts.unasked)
        if not self._reasons:
            return "The responses came in an earlier attempt, which showed some."
        reason = self._reasons.most_common(1)[0][0]
        keys = ("temperatures", "draws", "unlisted", "withhold_expert_tool")
        return CAUSES[reason].format(**{key: self._config.key(key) for key in keys})

    def _shown(self) -> str:
        """Return some responses in full, those of the most frequent reason first."""
        reasons = [reason for reason, _ in self._reasons.most_common()]
        responses = [response for reason in reasons for response in self._unused[reason]][:SHOWN]
        return "".join(f"\n--- a response ({item.reason}):\n{item.text}" for item in responses)
