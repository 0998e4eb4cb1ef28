"""Branching in one process by every method: each state is proved before it is used, and nothing is invented."""

from __future__ import annotations

import mmap
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from support.games import Game, SavedGame, expert, shown, whole

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.envs.household.text import IMPOSSIBLE
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.fork import ForkRestore
from verl_ee.experience.branching.protocol import TRIES, StateRequest, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.restore import ReplayRestore, RestoreMethod, SnapshotRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.proposers import sample_admissible, seed_of
from verl_ee.experience.state_ref import StateRef

CONFIG = CollectConfig(k=3)
FORM = Household.canonical_action
Info = dict[str, Any]
StepReturn = tuple[str, Any, bool, bool, Info]


class Untouchable:
    """A value that nobody may use."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("a reward was used")

    __getattr__ = __bool__ = __float__ = __int__ = __index__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __neg__ = __hash__ = __repr__ = __str__ = __format__ = _refuse
    __iter__ = __len__ = __getitem__ = __reduce_ex__ = __copy__ = __deepcopy__ = _refuse


class Unpaid(Household):
    """Its reward and its success may not be looked at."""

    def step(self, action: str) -> StepReturn:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, Untouchable(), terminated, truncated, info | {"success": Untouchable()}


class Forgetful(SavedGame):
    """Shows something else in one state once `after` actions have been taken there, by whatever fork."""

    def __init__(self, lost_path: list[str], after: int) -> None:
        super().__init__()
        self.lost_path, self.after, self.taken = lost_path, after, mmap.mmap(-1, 1)

    def step(self, action: str) -> StepReturn:
        if self.path == self.lost_path:
            self.taken[0] += 1
        return super().step(action)

    def view(self) -> tuple[str, Info]:
        observation, info = super().view()
        lost = self.path == self.lost_path and self.taken[0] >= self.after
        return "You are lost." if lost else observation, info


@pytest.fixture(params=[SnapshotRestore, ForkRestore, ReplayRestore], ids=lambda restore: restore.name)
def restore(request: pytest.FixtureRequest) -> RestoreMethod:
    """Every promise holds for each method to restore a state."""
    chosen: RestoreMethod = request.param()
    return chosen


@pytest.fixture
def trajectory() -> ExpertTrajectory:
    """Seven steps."""
    return Household().expert_trajectory("train/0")


def results_of(
    env: gymnasium.Env[str, str], restore: RestoreMethod, unit: WorkUnit, config: CollectConfig = CONFIG
) -> tuple[list[StateResult], Usage]:
    """Branch a unit, and return the results and the usage."""
    session = EnvironmentSession(lambda: env)
    return list(branch(session, restore, unit, config)), session.usage


def with_step(trajectory: ExpertTrajectory, index: int, **values: Any) -> ExpertTrajectory:
    steps = list(trajectory.steps)
    steps[index] = replace(steps[index], **values)
    return replace(trajectory, steps=tuple(steps))


def played(task: str, actions: list[str]) -> Outcome:
    """Return the outcome of the last of `actions` in a house of its own."""
    env = Household()
    env.reset(options={"task": task})
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
    return Outcome(actions[-1], observation, info["valid"], terminated or truncated)


@pytest.mark.parametrize("task", ["train/0", "train/11", "seen/3", "unseen/5"])
def test_every_method_gives_what_straight_play_gives(task: str, restore: RestoreMethod) -> None:
    trajectory = Household().expert_trajectory(task)
    actions = [step.action for step in trajectory.steps]
    results, _ = results_of(Household(), restore, whole(trajectory, 4))
    assert [result.ref for result in results] == [StateRef(4, step) for step in range(len(actions))]
    for step, result in enumerate(results):
        assert result.expert_outcome == played(task, actions[: step + 1])
        assert result.outcomes == tuple(played(task, [*actions[:step], action]) for action in result.alternatives)
        assert len(result.outcomes) == CONFIG.k
        assert (result.faults, result.lost) == ((), False)
    recorded = [*[step.observation for step in trajectory.steps[1:]], trajectory.final_observation]
    assert [result.expert_outcome.observation for result in results if result.expert_outcome] == recorded
    ends = [result.expert_outcome.done for result in results if result.expert_outcome]
    assert ends == [False] * (len(actions) - 1) + [True]


def test_an_action_that_the_environment_refuses_or_that_ends_it_is_marked(restore: RestoreMethod) -> None:
    trajectory = expert(length=3, listed=2)
    results, _ = results_of(SavedGame(listed=2), restore, whole(trajectory))
    for step, result in enumerate(results):
        expected = {
            Outcome(action, shown("game 0", 7, ["press 0"] * step + [action]), action != "jam", action == "stop")
            for action in ("press 1", "stop", "jam")
        }
        assert set(result.outcomes) == expected


def test_the_experts_own_outcome_is_left_out_if_it_is_not_requested(
    restore: RestoreMethod, trajectory: ExpertTrajectory
) -> None:
    unit = whole(trajectory)
    both, _ = results_of(Household(), restore, unit)
    requests = tuple(replace(request, include_expert=False) for request in unit.requests)
    alone, _ = results_of(Household(), restore, replace(unit, requests=requests))
    assert all(result.expert_outcome is None for result in alone)
    assert [result.outcomes for result in alone] == [result.outcomes for result in both]


def test_named_alternatives_are_executed_unless_their_outcome_is_known(restore: RestoreMethod) -> None:
    trajectory = expert(length=4)
    requests = (
        StateRequest(1, ("press 3", "press 4", "sing"), known=("press 4",), include_expert=False),
        StateRequest(3, ("press 5", " press 6 "), known=("press 6", "press 5"), include_expert=True),
    )
    results, _ = results_of(SavedGame(), restore, WorkUnit(2, trajectory, requests))
    assert [result.alternatives for result in results] == [request.alternatives for request in requests]
    assert [[outcome.action for outcome in result.outcomes] for result in results] == [["press 3", "sing"], []]
    assert results[0].expert_outcome is None
    assert results[1].expert_outcome == Outcome("press 0", shown("game 0", 7, ["press 0"] * 4), True, False)


@pytest.mark.parametrize("k", [1, 4, 8, 100])
def test_alternatives_are_k_different_listed_actions_without_the_experts(k: int) -> None:
    for task in range(20):
        trajectory = Household().expert_trajectory(f"train/{task}")
        for index, step in enumerate(trajectory.steps):
            listed = step.admissible_actions or ()
            chosen = sample_admissible(listed, step.action, k, seed_of(CONFIG, trajectory.task, index), FORM)
            assert len(chosen) == len(set(chosen)) == min(k, len(listed) - 1)
            assert set(chosen) <= set(listed) - {step.action}


@pytest.mark.parametrize("change", [" {} ".format, str.upper, "{}\n".format], ids=["spaces", "upper", "line"])
def test_alternatives_never_equal_the_experts_action_in_another_form(
    trajectory: ExpertTrajectory, change: Callable[[str], str]
) -> None:
    for step in trajectory.steps:
        listed = step.admissible_actions or ()
        chosen = sample_admissible(listed, change(step.action), 100, "seed", FORM)
        assert len(chosen) == len(listed) - 1
        assert step.action not in chosen


def test_two_forms_of_one_action_are_one_alternative() -> None:
    assert len(sample_admissible(("look", "look ", "Look", "wait", "go"), "go", 9, "seed", FORM)) == 2


def test_alternatives_are_uniform(trajectory: ExpertTrajectory) -> None:
    draws, k, recorded = 3000, 3, trajectory.steps[2]
    listed = recorded.admissible_actions or ()
    counts = Counter(
        action
        for seed in range(draws)
        for action in sample_admissible(
            listed, recorded.action, k, seed_of(CollectConfig(k=k, seed=seed), trajectory.task, 2), FORM
        )
    )
    pool = set(listed) - {recorded.action}
    share = k / len(pool)
    deviation = (draws * share * (1 - share)) ** 0.5
    assert set(counts) == pool
    assert all(abs(count - draws * share) < 4 * deviation for count in counts.values())


@pytest.mark.parametrize("count", [5, 20, 21, 22, 30, 84, 85, 86, 400])
def test_fewer_alternatives_are_the_first_of_more(count: int) -> None:
    listed = [f"press {number}" for number in range(count)]
    longest = sample_admissible(listed, "press 0", count, "seed", FORM)
    for k in (1, 3, 4, 5, 6, 8, 16, 21, 22, 64):
        assert sample_admissible(listed, "press 0", k, "seed", FORM) == longest[:k]


def test_the_choice_depends_on_seed_task_and_step_alone() -> None:
    units = [whole(Household().expert_trajectory(f"train/{task}"), task) for task in range(4)]

    def choices(units: list[WorkUnit], seed: int) -> dict[tuple[int, int], tuple[str, ...]]:
        config, env = CollectConfig(k=2, seed=seed), Household()
        results = [result for unit in units for result in results_of(env, SnapshotRestore(), unit, config)[0]]
        return {(result.ref.trajectory, result.ref.step): result.alternatives for result in results}

    random.seed(1)
    before = random.getstate()
    first = choices(units, 0)
    assert random.getstate() == before
    random.seed(2)
    assert choices(units[::-1], 0) == first
    assert choices(units, 1) != first
    assert choices([replace(unit, requests=unit.requests[3:]) for unit in units], 0).items() <= first.items()
    moved = [
        replace(unit, trajectory_index=unit.trajectory_index + 9, trajectory=replace(unit.trajectory, seed=5))
        for unit in units
    ]
    assert {(index - 9, step): actions for (index, step), actions in choices(moved, 0).items()} == first


def test_collecting_reads_no_reward(trajectory: ExpertTrajectory, restore: RestoreMethod) -> None:
    env = Unpaid()
    env.reset(options={"task": trajectory.task})
    _, reward, _, _, info = env.step(trajectory.steps[0].action)
    for use in (bool, float, repr, lambda value: value + 1, lambda value: value.item(), lambda value: value == 0):
        for value in (reward, info["success"]):
            with pytest.raises(AssertionError):
                use(value)
    unpaid, _ = results_of(env, restore, whole(trajectory))
    assert unpaid == results_of(Household(), restore, whole(trajectory))[0]
    assert not any(result.faults for result in unpaid)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_state_that_changes_while_it_is_branched_is_tried_again_and_then_reported(
    restore: RestoreMethod, after: int
) -> None:
    trajectory = expert(length=5)
    env = Forgetful(["press 0"] * 2, after)
    results, _ = results_of(env, restore, whole(trajectory, 6))
    lost = [result.ref.step for result in results if result.lost]
    if restore.name == "fork" and after:
        # A child's steps are not seen by the parent, which comes by the state once.
        assert lost == []
        return
    assert lost == ([2, 3, 4] if after == 0 else [3, 4])
    first = results[lost[0]]
    assert len(first.faults) == TRIES
    for fault in first.faults:
        assert (fault.ref, fault.kind) == (StateRef(6, lost[0]), "observation")
        for word in ("at step 2", "'You are lost.'", repr(trajectory.steps[2].observation)):
            assert word in fault.message


@pytest.mark.parametrize("after", [0, 1, 3])
def test_nothing_wrong_is_kept_of_a_state_that_changes(restore: RestoreMethod, after: int) -> None:
    trajectory = expert(length=5)
    results, _ = results_of(Forgetful(["press 0"] * 2, after), restore, whole(trajectory))
    for result in results:
        path = ["press 0"] * result.ref.step
        expert_outcomes = [result.expert_outcome] if result.expert_outcome else []
        outcomes = [*result.outcomes, *expert_outcomes]
        for outcome in outcomes:
            assert outcome.observation == shown("game 0", 7, [*path, outcome.action])
        if not result.lost:
            failed = [fault.action for fault in result.faults if fault.action]
            executed = [outcome.action for outcome in outcomes]
            assert sorted(executed + failed) == sorted((*result.alternatives, "press 0"))


@pytest.mark.parametrize(
    ("index", "values", "words"),
    [
        (2, {"observation": "You see a dragon."}, ["step 2", "'You see a dragon.'"]),
        (0, {"observation": "You see a dragon."}, ["step 0", "'You see a dragon.'"]),
        (3, {"admissible_actions": ("fly",)}, ["step 3", "admissible actions", "'fly'"]),
        (1, {"action": "fly to the moon"}, ["step 2", repr(IMPOSSIBLE)]),
        (4, {"action": "go to shelf 1"}, ["step 5"]),
    ],
    ids=["observation", "first", "admissible", "impossible", "other-action"],
)
def test_an_expert_who_saw_or_did_something_else_is_noticed(
    trajectory: ExpertTrajectory, restore: RestoreMethod, index: int, values: Info, words: list[str]
) -> None:
    wrong = with_step(trajectory, index, **values)
    results, _ = results_of(Household(), restore, whole(wrong, 9))
    reached = int(words[0].removeprefix("step "))
    assert [result.lost for result in results] == [step >= reached for step in range(len(results))]
    for result in results[reached:]:
        for word in ("trajectory 9", f"step {result.ref.step}", *words):
            assert word in str(result.faults[-1])
        assert (result.outcomes, result.expert_outcome) == ((), None)
    for step, result in enumerate(results[:reached]):
        actions = [step.action for step in wrong.steps[:step]]
        assert result.outcomes == tuple(played("train/0", [*actions, action]) for action in result.alternatives)
        # What led to another state than the recorded one is no outcome of the expert's.
        assert (result.expert_outcome is None) == (step == reached - 1)
        assert [fault.action for fault in result.faults] == [wrong.steps[step].action] * (step == reached - 1)


def test_an_expert_whose_last_action_led_elsewhere_is_noticed(
    trajectory: ExpertTrajectory, restore: RestoreMethod
) -> None:
    wrong = replace(trajectory, final_observation="You see a dragon.")
    *_, last = results_of(Household(), restore, whole(wrong))[0]
    assert (last.lost, last.expert_outcome, len(last.outcomes)) == (False, None, CONFIG.k)
    assert last.faults[-1].action == trajectory.steps[-1].action
    assert "'You see a dragon.'" in str(last.faults[-1])


def test_an_episode_that_ends_before_the_expert_did_is_noticed(
    trajectory: ExpertTrajectory, restore: RestoreMethod
) -> None:
    results, _ = results_of(Household(max_steps=3), restore, whole(trajectory, 2))
    assert [result.lost for result in results] == [step > 3 for step in range(len(results))]
    assert [len(result.outcomes) for result in results[:4]] == [CONFIG.k] * 3 + [0]
    for fault in (results[3].faults[-1], results[4].faults[-1]):
        assert (fault.ref.trajectory, fault.kind) == (2, "raised")
        assert "The episode has ended" in fault.message


def test_an_action_with_which_the_episode_runs_out_ends_it(
    trajectory: ExpertTrajectory, restore: RestoreMethod
) -> None:
    length = len(trajectory.steps)
    results, _ = results_of(Household(max_steps=length), restore, whole(trajectory))
    for step, result in enumerate(results):
        assert {outcome.done for outcome in result.outcomes} == {step == length - 1}


@pytest.mark.parametrize(("length", "k"), [(1, 1), (6, 3), (12, 9)])
def test_a_walk_takes_one_step_for_each_transition(length: int, k: int) -> None:
    for restore in (SnapshotRestore(), ForkRestore()):
        results, usage = results_of(SavedGame(), restore, whole(expert(length=length)), CollectConfig(k=k))
        assert usage == Usage(env_steps=length * (k + 1), resets=1)
        assert sum(len(result.outcomes) + 1 for result in results) == length * (k + 1)
        assert sum((result.usage for result in results), Usage()) == usage


def test_an_environment_that_is_used_again_begins_anew(restore: RestoreMethod) -> None:
    env = SavedGame()
    session = EnvironmentSession(lambda: env)
    units = [whole(expert(f"game {number}"), number) for number in (0, 1, 0)]
    together = [[replace(a, usage=Usage()) for a in branch(session, restore, unit, CONFIG)] for unit in units]
    for unit, results in zip(units, together, strict=True):
        alone, _ = results_of(SavedGame(), restore, unit)
        assert results == [replace(result, usage=Usage()) for result in alone]


def test_a_game_without_a_list_is_branched_with_what_it_lists_when_it_is_reached(restore: RestoreMethod) -> None:
    listed, _ = results_of(SavedGame(), restore, whole(expert()))
    unlisted, _ = results_of(SavedGame(), restore, whole(expert(listed=None)))
    assert unlisted == listed
    assert {action for result in unlisted for action in result.alternatives} <= set(Game().actions)


@pytest.mark.parametrize("limit", [6, 7, 20])
def test_a_wrapper_that_limits_the_steps_counts_those_of_the_branch_alone(restore: RestoreMethod, limit: int) -> None:
    trajectory = expert(length=6)
    env = TimeLimit(OrderEnforcing(SavedGame()), limit)
    results, _ = results_of(env, restore, whole(trajectory), CollectConfig(k=9))
    for step, result in enumerate(results):
        assert (len(result.outcomes), result.faults) == (9, ())
        for outcome in (*result.outcomes, *([result.expert_outcome] if result.expert_outcome else [])):
            assert outcome.done == (outcome.action == "stop" or step + 1 == limit), (step, outcome)
