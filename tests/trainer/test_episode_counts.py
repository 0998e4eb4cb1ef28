"""Episodes of a step, added up, and how many may end because the environment failed."""

from __future__ import annotations

import pytest
from support.episode_infos import early_experience, info

from verl_ee.errors import EnvError
from verl_ee.experience.progress import read_plugin_line
from verl_ee.trainer.episode_counts import EpisodeCounts, FailureBudget


def counts(episodes: int, failed: int) -> EpisodeCounts:
    return EpisodeCounts.of([info(env_error=f"failure {index}" * (index < failed)) for index in range(episodes)])


def test_shares_are_of_responses_and_of_episodes() -> None:
    rows = [
        info(turns=8, no_action=0.5, refused=0.25),
        info(turns=2, no_action=1.0),
        info(turns=0, env_error="it hung"),
    ]
    added = EpisodeCounts.of([*rows, {"acc": 1.0}, {}])
    assert added.metrics() == {
        "early_experience/no_action": pytest.approx(0.6),
        "early_experience/refused": pytest.approx(0.2),
        "early_experience/env_failed": pytest.approx(1 / 3),
    }
    assert added.errors == ("it hung",)


def test_episodes_of_another_loop_give_no_shares() -> None:
    assert EpisodeCounts.of([{"acc": 1.0}, {"env_failed": None, "turns": None}]).metrics() == {}


@pytest.mark.parametrize(
    ("allowed", "episodes", "failed"),
    [(0.1, 20, 2), (0.1, 4, 1), (0.5, 4, 2), (1.0, 4, 3), (0.0, 4, 0), (0.1, 0, 0)],
)
def test_failures_within_the_budget_are_told(
    allowed: float, episodes: int, failed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = FailureBudget(early_experience(max_failed_episodes=allowed))
    budget.check(counts(episodes, failed), "step 7 of grpo")
    lines = [line for line in map(read_plugin_line, capsys.readouterr().err.splitlines()) if line is not None]
    ended = f"{failed} of {episodes} episodes of step 7 of grpo ended because the environment failed. First: failure 0"
    assert lines == ([("WARNING", ended)] if failed else [])


@pytest.mark.parametrize(("allowed", "episodes", "failed"), [(0.1, 20, 3), (0.1, 4, 2), (0.0, 40, 1), (1.0, 4, 4)])
def test_more_failures_than_the_budget_end_the_job(allowed: float, episodes: int, failed: int) -> None:
    budget = FailureBudget(early_experience("test/World-v0", max_failed_episodes=allowed))
    with pytest.raises(EnvError) as refused:
        budget.check(counts(episodes, failed), "step 7 of grpo")
    words = [
        f"{failed} of {episodes} episodes of step 7 of grpo",
        f"early_experience.max_failed_episodes={allowed:g}",
        "First: failure 0",
        "verl-ee envs check test/World-v0",
        "early_experience.step_timeout",
    ]
    assert all(word in str(refused.value) for word in words)
