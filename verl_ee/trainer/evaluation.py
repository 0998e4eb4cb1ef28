"""Evaluations of a job: the stage that each belongs to, the seconds of that stage, and its success."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from verl_ee.experience.progress import plugin_logger
from verl_ee.run.stage_result import GRPO, outcomes_of
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.episode_counts import EpisodeCounts, FailureBudget
from verl_ee.trainer.stage_log import evaluated_line

logger = plugin_logger(__name__)


class StageEvaluation:
    """Records each evaluation under the stage that it belongs to, in the summary of the run.

    Attributes:
        stage: name of the stage that is under way.
    """

    def __init__(self, summary: RunSummary, last_stage: str, stage: str, failures: FailureBudget) -> None:
        """Begin with a stage.

        Args:
            summary: summary of the run.
            last_stage: name of the last stage of mid-training.
            stage: `base` in a job that has stages to train, `grpo` in one that goes on behind them.
            failures: how many episodes may end because the environment failed.
        """
        self._summary, self._last_stage, self._failures = summary, last_stage, failures
        self._episodes: Counter[str] = Counter()
        self._outcomes: dict[str, dict[str, bool]] = {}
        self._no_action: dict[str, float] = {}
        self._env_failed: dict[str, float] = {}
        self.begin(stage)

    def begin(self, stage: str) -> None:
        """Note that a stage begins now."""
        self.stage, self._began = stage, time.monotonic()

    def note_episodes(
        self,
        data_sources: Sequence[str],
        infos: Mapping[str, Sequence[object]],
        counts: Mapping[tuple[str, str], int],
    ) -> None:
        """Note the episodes of the evaluation that is under way.

        Args:
            data_sources: data source of each episode.
            infos: `reward_extra_info` of each episode, by key.
            counts: number of episodes of each task, by data source and task.

        Raises:
            EnvError: if the environment failed in more of them than allowed.
        """
        self._episodes = Counter()
        for (data_source, _), repeats in counts.items():
            self._episodes[data_source] += repeats
        self._outcomes = outcomes_of(data_sources, infos)
        # A list is longer where a reward function has a key of verl's own, `reward`; verl reads it by index as well.
        episodes = [{key: values[index] for key, values in infos.items()} for index in range(len(data_sources))]
        self._failures.check(EpisodeCounts.of(episodes), f"the evaluation of {self.stage}")
        by_source = defaultdict(list)
        for data_source, info in zip(data_sources, episodes, strict=True):
            by_source[data_source].append(info)
        played = {source: EpisodeCounts.of(own) for source, own in by_source.items()}
        known = {source: own for source, own in played.items() if own.episodes}
        self._no_action = {source: own.no_action_share for source, own in known.items()}
        self._env_failed = {source: own.failed_share for source, own in known.items()}

    def record(self, validate: Callable[[], dict[str, float]], global_step: int) -> dict[str, float]:
        """Evaluate the policy, record its success, and return verl's metrics.

        Args:
            validate: plays the episodes, which `note_episodes` is told of, and returns verl's metrics.
            global_step: steps of GRPO that the policy has taken.
        """
        evaluation_began = time.monotonic()
        seconds = evaluation_began - self._began
        metrics = validate()
        # Evaluating is not part of any stage.
        self._began += time.monotonic() - evaluation_began
        success = {name: _success(metrics, name) for name in self._episodes}
        # A job that only goes on with GRPO begins with the policy of the last stage.
        earlier = self.stage == GRPO and global_step == 0
        result = self._summary.record_evaluation(
            self._last_stage if earlier else self.stage,
            None if earlier else seconds,
            success,
            self._episodes,
            self._outcomes,
            self._no_action,
            self._env_failed,
        )
        logger.info(evaluated_line(result, global_step if result.name == GRPO else None))
        return metrics


def _success(metrics: Mapping[str, float], data_source: str) -> float:
    """Return verl's core metric of a data source: `acc` where the agent loop reports it, else the reward."""
    prefix = f"val-core/{data_source}/"
    # Another data source may begin with the name of this one.
    rest = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    means = [value for key, value in rest.items() if key.count("/") == 1 and "/mean@" in key]
    return float(means[0]) if means else float("nan")
