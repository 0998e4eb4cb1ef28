"""Text on collecting: what it took, what it would take, and what an environment can do."""

from __future__ import annotations

from dataclasses import replace

from support.report_runs import cells

from verl_ee.envs import make
from verl_ee.experience.branching.environment_check import EnvironmentCheck, RestoreTrial
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.collecting.prediction import Prediction
from verl_ee.experience.cost import Cost
from verl_ee.report.collecting import check_text, collected_text, prediction_text

COST = Cost(env_steps=12345, resets=7, seconds=3.25, bytes=1024)


def test_a_collection_is_described() -> None:
    result = CollectionResult(states=1200, branches=9000, lost=3, failed=2, faults={"died": 1}, cost=COST)
    text = collected_text(result)
    assert cells(text, "states") == ["states", "1,200 (3 lost)"]
    assert cells(text, "restore") == ["restore", "none needed"]
    assert cells(text, "faults") == ["faults", "1 died"]
    assert cells(text, "environment steps") == ["environment steps", "12,345"]
    assert "money" not in text
    assert cells(collected_text(result, {"env_steps": 0.01}), "money") == ["money", "123.45"]


def test_a_prediction_says_what_is_counted() -> None:
    prediction = Prediction(COST, exact=True, restore="fork", workers=4, states=100, sampled=64)
    text = prediction_text(prediction)
    assert cells(text, "restore") == ["restore", "fork"]
    assert text.endswith("environment steps: counted; the rest scaled from a sample of 64 states")
    assert "there may be fewer" in prediction_text(replace(prediction, exact=False))
    assert prediction_text(replace(prediction, states=0)).startswith("Nothing is left to do")


def test_a_check_says_what_can_be_used() -> None:
    env = make("verl_ee/Household-v0")
    trajectory = env.unwrapped.expert_trajectory("train/0")
    trials = [RestoreTrial("fork", "it has threads"), RestoreTrial("replay", branches=9, milliseconds=0.25)]
    check = EnvironmentCheck(len(trajectory.steps), 1.5, 0.125, trials=trials, automatic="replay")
    text = check_text(env, trajectory, check)
    assert cells(text, "id") == ["id", "verl_ee/Household-v0"]
    assert "expert" in cells(text, "can")[1].split(", ")
    assert cells(text, "declared nondeterministic")[1] == "no"
    assert cells(text, "expert played twice")[1] == f"the same {len(trajectory.steps)} steps both times"
    assert cells(text, "reset") == ["reset", "1.500 ms"]
    assert "fork      no: it has threads" in text
    assert "replay    9 branches, 0.250 ms each" in text
    assert text.splitlines()[-1].startswith("restore=auto uses replay")
    broken = EnvironmentCheck(3, problem="in play 2, another observation")
    assert cells(check_text(env, trajectory, broken), "expert played twice")[1] == broken.problem
    assert check_text(env, trajectory, broken).endswith("This environment cannot be branched.")
