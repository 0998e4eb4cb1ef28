"""Episodes of a GRPO step or of an evaluation: shares of what went wrong, and how many environments may fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import EnvError
from verl_ee.experience.progress import plugin_logger

logger = plugin_logger(__name__)


@dataclass(frozen=True)
class EpisodeCounts:
    """Episodes of this package's agent loop, added up.

    Attributes:
        episodes: number of episodes.
        turns: responses in them.
        no_action: responses without an action.
        refused: responses whose action the environment refused.
        errors: how the environments failed, one text for each episode that ended by it.
    """

    episodes: int = 0
    turns: int = 0
    no_action: float = 0.0
    refused: float = 0.0
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, infos: Iterable[Mapping[str, Any]]) -> EpisodeCounts:
        """Add up episodes.

        Args:
            infos: `reward_extra_info` of each episode; those of other agent loops are left out.
        """
        own = [info for info in infos if info.get("env_failed") is not None]
        return cls(
            len(own),
            sum(int(info["turns"]) for info in own),
            sum(info["turns"] * info["no_action"] for info in own),
            sum(info["turns"] * info["refused"] for info in own),
            tuple(str(info["env_error"]) for info in own if info["env_failed"]),
        )

    @property
    def no_action_share(self) -> float:
        """Share of the responses that hold no action."""
        return self.no_action / max(self.turns, 1)

    @property
    def failed_share(self) -> float:
        """Share of the episodes that ended because their environment failed."""
        return len(self.errors) / max(self.episodes, 1)

    def metrics(self) -> dict[str, float]:
        """Return the shares as metrics of a step; none without episodes."""
        if not self.episodes:
            return {}
        return {
            f"{ROOT}/no_action": self.no_action_share,
            f"{ROOT}/refused": self.refused / max(self.turns, 1),
            f"{ROOT}/env_failed": self.failed_share,
        }


class FailureBudget:
    """The episodes that may end because the environment failed."""

    def __init__(self, early: EarlyExperienceConfig) -> None:
        """Take the share from a config.

        Args:
            early: `early_experience` of the job.
        """
        self._allowed, self._environment = early.max_failed_episodes, early.environment.id

    def check(self, counts: EpisodeCounts, where: str) -> None:
        """Log the episodes whose environment failed, and refuse more than the config allows.

        A single one is within every share but 0: a small step would else end by it. If all have failed, nothing is left
        whatever is allowed.

        Args:
            counts: the episodes.
            where: they belong to, for the message.

        Raises:
            EnvError: naming the key that allows more, and the first failure.
        """
        failed = len(counts.errors)
        if not failed:
            return
        problem = f"{failed} of {counts.episodes} episodes of {where} ended because the environment failed"
        first = f"First: {counts.errors[0]}"
        if failed < counts.episodes and failed <= max(self._allowed * counts.episodes, 1 if self._allowed else 0):
            logger.warning(f"{problem}. {first}")
            return
        raise EnvError(
            f"{problem}; {ROOT}.max_failed_episodes={self._allowed:g} is the share that may. {first}\n"
            f"Repair the environment (`verl-ee envs check {self._environment}` tries it). If it is only slow, raise "
            f"{ROOT}.step_timeout or {ROOT}.start_timeout; if such episodes may be lost, raise the share."
        )
