"""Branching: every state is proved before it is used, nothing is invented, and what came back is stored once."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pyarrow.parquet as pq
import pytest
import ray

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertStep, ExpertTrajectory, Snapshots, make
from verl_ee.envs.household.env import Household
from verl_ee.envs.household.text import IMPOSSIBLE
from verl_ee.errors import BranchError, EnvironmentFault, StoreError
from verl_ee.experience.brancher import Branches, branch_trajectory, check_mismatches, choose_alternatives
from verl_ee.experience.rendering import canonical
from verl_ee.experience.store import BRANCHES, TRANSITIONS, Branch, Outcome, key_of, read_outcomes, write_store
from verl_ee.experience.workers import TRIES, collect

ID = "verl_ee/Household-v0"
CONFIG = CollectConfig(k=3)
Info = dict[str, Any]
Result = tuple[str, Any, bool, bool, Info]


class Plain(gymnasium.Env[str, str]):
    """A household without its capabilities, so that its states are reached by replay."""

    def __init__(self, inner: Household | None = None) -> None:
        self.inner = inner or Household()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        return self.inner.reset(seed=seed, options=options)

    def step(self, action: str) -> Result:
        return self.inner.step(action)


class Untouchable:
    """A value that nobody may use."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("a reward was used")

    __getattr__ = __bool__ = __float__ = __int__ = __index__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __neg__ = __hash__ = __repr__ = __str__ = __format__ = _refuse
    __iter__ = __len__ = __getitem__ = __reduce_ex__ = __copy__ = __deepcopy__ = _refuse


class Unpaid(Household):
    """Its reward and its success may not be looked at."""

    def step(self, action: str) -> Result:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, Untouchable(), terminated, truncated, info | {"success": Untouchable()}


class Forgetful(Household):
    """Shows something else in the state after `path` once `after` actions have been taken there."""

    def __init__(self, path: list[str], after: int) -> None:
        super().__init__()
        self.path, self.after = path, after
        self.taken, self.done = 0, list[str]()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.done = []
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Result:
        self.taken += self.done == self.path
        self.done = [*self.done, action]
        observation, *rest = super().step(action)
        return self.shown(observation), *rest

    def restore(self, state: Any) -> tuple[str, Info]:
        observation, info = super().restore(state)
        self.done = [*self.path, *[""] * state.steps][: state.steps]
        return self.shown(observation), info

    def shown(self, observation: str) -> str:
        return "You are lost." if self.done == self.path and self.taken >= self.after else observation


class Corridor(gymnasium.Env[str, str]):
    """The observation is the number of the door where one stands; to wait is listed and yet not possible."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.at = self.start
        return self.seen()

    def step(self, action: str) -> Result:
        self.at += {"forward": 1, "back": -1}.get(action, 0)
        observation, info = self.seen()
        return observation, 0.0, False, False, info | ({"valid": False} if action == "wait" else {})

    def seen(self) -> tuple[str, Info]:
        return f"door {self.at}", {"admissible_actions": ("forward", "back", "wait")}


def corridor(length: int) -> ExpertTrajectory:
    listed = ("forward", "back", "wait")
    steps = tuple(ExpertStep(f"door {at}", "forward", None, listed) for at in range(length))
    return ExpertTrajectory("test/Corridor-v0", "1", "walk", "walk", steps, f"door {length}", True)


def with_step(trajectory: ExpertTrajectory, index: int, **values: Any) -> ExpertTrajectory:
    steps = list(trajectory.steps)
    steps[index] = replace(steps[index], **values)
    return replace(trajectory, steps=tuple(steps))


def played(task: str, actions: list[str]) -> tuple[str, bool, bool]:
    """What the last of `actions` leads to in a house of its own: observation, validity, end."""
    env = Household()
    env.reset(options={"task": task})
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
    return observation, info["valid"], terminated or truncated


@pytest.fixture
def trajectory() -> ExpertTrajectory:
    """Seven steps."""
    return Household().expert_trajectory("train/0")


@pytest.fixture
def registry() -> Iterator[None]:
    """Registrations of a test end with it."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture(params=["snapshots", "replay"])
def household(request: pytest.FixtureRequest) -> Callable[[Household], gymnasium.Env[str, str]]:
    """Makes a household be branched one way or the other."""
    return Plain if request.param == "replay" else lambda inner: inner


@pytest.mark.parametrize("task", ["train/0", "train/11", "seen/3", "unseen/5"])
def test_snapshots_and_replay_give_what_straight_play_gives(task: str) -> None:
    trajectory = Household().expert_trajectory(task)
    assert isinstance(Household(), Snapshots)
    assert not isinstance(Plain(), Snapshots)
    quick = branch_trajectory(make(ID), trajectory, 4, CONFIG)
    slow = branch_trajectory(Plain(), trajectory, 4, CONFIG)
    assert quick.mismatches == slow.mismatches == []
    assert quick.transitions == slow.transitions
    assert quick.branches == slow.branches
    assert quick.states == slow.states == len(trajectory.steps)
    assert quick.env_steps < slow.env_steps

    expert = [step.action for step in trajectory.steps]
    facts = {transition.key: transition for transition in quick.transitions}
    assert Counter(branch.step for branch in quick.branches) == dict.fromkeys(range(len(expert)), CONFIG.k + 1)
    for branch in quick.branches:
        fact = facts[branch.key]
        assert (branch.trajectory, fact.task, list(fact.prefix)) == (4, task, expert[: branch.step])
        assert (branch.proposer == "expert") == (branch.order == 0) == (fact.action == expert[branch.step])
        assert (fact.observation, fact.valid, fact.done) == played(task, [*fact.prefix, fact.action])
    own = [facts[branch.key] for branch in quick.branches if branch.proposer == "expert"]
    recorded = [*[step.observation for step in trajectory.steps[1:]], trajectory.final_observation]
    assert [fact.observation for fact in own] == recorded
    assert [fact.done for fact in own] == [False] * (len(expert) - 1) + [True]


def test_an_action_that_the_environment_refuses_is_marked() -> None:
    result = branch_trajectory(Corridor(), corridor(3), 0, CollectConfig(k=2))
    assert [b.step for b in result.branches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for fact in result.transitions:
        at = len(fact.prefix) + {"forward": 1, "back": -1, "wait": 0}[fact.action]
        assert (fact.observation, fact.valid, fact.done) == (f"door {at}", fact.action != "wait", False)


def test_the_expert_transition_is_left_out_if_asked(trajectory: ExpertTrajectory) -> None:
    both = branch_trajectory(Household(), trajectory, 0, CONFIG)
    alone = branch_trajectory(
        Household(), trajectory, 0, CONFIG.model_copy(update={"include_expert_transition": False})
    )
    assert {branch.proposer for branch in alone.branches} == {"admissible"}
    assert [b.key for b in alone.branches] == [b.key for b in both.branches if b.proposer == "admissible"]


@pytest.mark.parametrize("k", [1, 4, 8, 100])
def test_alternatives_are_k_different_listed_actions_without_the_experts(k: int) -> None:
    for task in range(20):
        trajectory = Household().expert_trajectory(f"train/{task}")
        for index, step in enumerate(trajectory.steps):
            chosen = choose_alternatives(CollectConfig(k=k), trajectory, index)
            listed = set(step.admissible_actions or ())
            assert len(chosen) == len(set(chosen)) == min(k, len(listed) - 1)
            assert set(chosen) <= listed - {step.action}


@pytest.mark.parametrize("written", ['"{}"', " {} ", "{}.", "'{}.'", "`{}`"])
def test_alternatives_never_equal_the_experts_action_in_another_form(
    trajectory: ExpertTrajectory, written: str
) -> None:
    for index, step in enumerate(trajectory.steps):
        other = with_step(trajectory, index, action=written.format(step.action))
        chosen = choose_alternatives(CollectConfig(k=100), other, index)
        assert len(chosen) == len(step.admissible_actions or ()) - 1
        assert canonical(step.action) not in map(canonical, chosen)


def test_alternatives_are_uniform(trajectory: ExpertTrajectory) -> None:
    draws, k, index = 3000, 3, 2
    counts = Counter(
        action
        for seed in range(draws)
        for action in choose_alternatives(CollectConfig(k=k, seed=seed), trajectory, index)
    )
    pool = set(trajectory.steps[index].admissible_actions or ()) - {trajectory.steps[index].action}
    share = k / len(pool)
    deviation = (draws * share * (1 - share)) ** 0.5
    assert set(counts) == pool
    assert all(abs(count - draws * share) < 4 * deviation for count in counts.values())


def test_the_choice_depends_on_seed_task_and_step_alone() -> None:
    trajectories = [Household().expert_trajectory(f"train/{task}") for task in range(4)]
    states = [(t, index) for t in trajectories for index in range(len(t.steps))]

    def choices(seed: int) -> dict[tuple[str, int], list[str]]:
        return {(t.task, index): choose_alternatives(CollectConfig(k=2, seed=seed), t, index) for t, index in states}

    random.seed(1)
    before = random.getstate()
    first = choices(0)
    assert random.getstate() == before
    random.Random(3).shuffle(states)
    random.seed(2)
    assert choices(0) == first
    assert choices(1) != first
    env = make(ID)
    forward = [branch_trajectory(env, t, i, CONFIG) for i, t in enumerate(trajectories)]
    backward = [branch_trajectory(env, t, i, CONFIG) for i, t in reversed(list(enumerate(trajectories)))]
    assert forward == backward[::-1]


def test_collecting_reads_no_reward(
    trajectory: ExpertTrajectory, household: Callable[[Household], gymnasium.Env[str, str]]
) -> None:
    env = household(Unpaid())
    env.reset(options={"task": trajectory.task})
    _, reward, _, _, info = env.step(trajectory.steps[0].action)
    for use in (bool, float, repr, lambda value: value + 1, lambda value: value.item(), lambda value: value == 0):
        for value in (reward, info["success"]):
            with pytest.raises(AssertionError):
                use(value)
    unpaid = branch_trajectory(env, trajectory, 0, CONFIG)
    assert unpaid.transitions == branch_trajectory(Household(), trajectory, 0, CONFIG).transitions


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_state_that_changed_while_it_was_branched_is_counted_once(
    trajectory: ExpertTrajectory, household: Callable[[Household], gymnasium.Env[str, str]], after: int
) -> None:
    path = [step.action for step in trajectory.steps[:2]]
    result = branch_trajectory(household(Forgetful(path, after)), trajectory, 6, CONFIG)
    assert len(result.mismatches) == 1
    for word in ("trajectory 6", "train/0", "step 2", "'You are lost.'", repr(trajectory.steps[2].observation)):
        assert word in result.mismatches[0]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_nothing_is_kept_of_a_state_that_changed_nor_of_what_follows(
    trajectory: ExpertTrajectory, household: Callable[[Household], gymnasium.Env[str, str]], after: int
) -> None:
    path = [step.action for step in trajectory.steps[:2]]
    result = branch_trajectory(household(Forgetful(path, after)), trajectory, 0, CONFIG)
    assert {branch.step for branch in result.branches} == {0, 1}
    assert {len(transition.prefix) for transition in result.transitions} == {0, 1}


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
    trajectory: ExpertTrajectory,
    household: Callable[[Household], gymnasium.Env[str, str]],
    index: int,
    values: dict[str, Any],
    words: list[str],
) -> None:
    wrong = with_step(trajectory, index, **values)
    result = branch_trajectory(household(Household()), wrong, 9, CONFIG)
    (mismatch,) = result.mismatches
    for word in ["trajectory 9", "train/0", *words]:
        assert word in mismatch
    reached = int(words[0].removeprefix("step "))
    assert {branch.step for branch in result.branches} == set(range(reached))
    with pytest.raises(BranchError) as raised:
        check_mismatches(result, CONFIG)
    assert mismatch in str(raised.value)


def test_an_episode_that_ends_before_the_expert_did_is_a_mismatch(trajectory: ExpertTrajectory) -> None:
    for env in (Household(max_steps=3), Plain(Household(max_steps=3))):
        (mismatch,) = branch_trajectory(env, trajectory, 2, CONFIG).mismatches
        assert "trajectory 2 (task train/0)" in mismatch


def test_too_many_mismatches_stop_the_run_with_the_first_three() -> None:
    told = [f"trajectory {n} (task t), step 0: observation is 'a', recorded was '{n}'" for n in range(4)]
    config = CollectConfig(max_mismatch=0.02)
    check_mismatches(Branches(mismatches=[], states=0), config)
    check_mismatches(Branches(mismatches=told, lost=4, states=200), config)
    check_mismatches(Branches(mismatches=told, lost=4, states=4), CollectConfig(max_mismatch=1.0))
    with pytest.raises(BranchError) as raised:
        check_mismatches(Branches(mismatches=told, lost=4, states=199), config)
    message = str(raised.value)
    for word in (*told[:3], "4 of 199", "early_experience.collect.max_mismatch=0.02"):
        assert word in message
    assert told[3] not in message
    with pytest.raises(BranchError):
        check_mismatches(Branches(mismatches=told[:1], lost=1, states=5), CollectConfig(max_mismatch=0.0))


def test_states_that_were_given_up_behind_a_mismatch_count_as_well() -> None:
    lost = branch_trajectory(Corridor(start=5), corridor(150), 0, CollectConfig())
    assert lost.branches == []
    with pytest.raises(BranchError):
        check_mismatches(lost, CollectConfig(max_mismatch=0.01))


def test_a_nondeterministic_environment_is_never_replayed(registry: None, trajectory: ExpertTrajectory) -> None:
    gymnasium.register("test/Dice-v0", entry_point=Plain, nondeterministic=True)
    gymnasium.register("test/Saved-v0", entry_point=Household, nondeterministic=True)
    with pytest.raises(EnvironmentFault, match=r"test/Dice-v0 is declared nondeterministic.*restore"):
        branch_trajectory(make("test/Dice-v0"), replace(trajectory, environment="test/Dice-v0"), 0, CONFIG)
    saved = branch_trajectory(make("test/Saved-v0"), trajectory, 0, CONFIG)
    assert saved == branch_trajectory(Household(), trajectory, 0, CONFIG)


@pytest.fixture
def collected() -> Branches:
    """Two experts of the same task, whose first states are the same, and one of another."""
    env = Household()
    total = Branches()
    experts = [env.expert_trajectory("train/3"), env.expert_trajectory("train/3"), env.expert_trajectory("train/4")]
    for index, trajectory in enumerate(experts):
        total.add(branch_trajectory(env, trajectory, index, CONFIG))
    return total


PROVENANCE = {"experts": "0a1b", "note": "é"}


def test_the_store_gives_back_what_was_collected(tmp_path: Path, collected: Branches) -> None:
    folder = tmp_path / "k=3" / "store"
    write_store(folder, collected.transitions, collected.branches, PROVENANCE)
    facts = {transition.key: transition for transition in collected.transitions}
    assert read_outcomes(folder) == [
        Outcome(
            b.trajectory, b.step, facts[b.key].action, facts[b.key].observation, facts[b.key].valid, b.proposer, b.key
        )
        for b in collected.branches
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted([TRANSITIONS, BRANCHES])
    rows = pq.read_table(folder / TRANSITIONS).to_pylist()
    assert {row["key"]: tuple(row["prefix"]) for row in rows} == {key: fact.prefix for key, fact in facts.items()}
    assert len(rows) == len(facts) < len(collected.branches)
    metadata = pq.read_schema(folder / BRANCHES).metadata
    assert metadata[b"verl_ee.experts"] == b"0a1b"


def test_equal_content_gives_equal_bytes(tmp_path: Path, collected: Branches) -> None:
    write_store(tmp_path / "a", collected.transitions, collected.branches, PROVENANCE)
    rng = random.Random(0)
    transitions = [*collected.transitions, *collected.transitions[:5]]
    branches = list(collected.branches)
    rng.shuffle(transitions)
    rng.shuffle(branches)
    write_store(tmp_path / "b", transitions, branches, PROVENANCE)
    write_store(tmp_path / "c", transitions[:-1], branches[:-1], PROVENANCE)
    for name in (TRANSITIONS, BRANCHES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / BRANCHES).read_bytes() != (tmp_path / "c" / BRANCHES).read_bytes()


def test_the_order_of_the_provenance_does_not_matter(tmp_path: Path, collected: Branches) -> None:
    for name, provenance in (("a", PROVENANCE), ("b", dict(reversed(PROVENANCE.items())))):
        write_store(tmp_path / name, collected.transitions, collected.branches, provenance)
    assert (tmp_path / "a" / BRANCHES).read_bytes() == (tmp_path / "b" / BRANCHES).read_bytes()


def test_every_part_of_the_left_side_is_in_the_key() -> None:
    environment = {"id": "a/B-v0", "version": "1", "kwargs": {"x": 1, "y": 2}}
    same = key_of({"kwargs": {"y": 2, "x": 1}, "version": "1", "id": "a/B-v0"}, "t", ("p", "q"), "r")
    keys = [
        key_of(environment, "t", ["p", "q"], "r"),
        key_of(environment | {"id": "a/C-v0"}, "t", ["p", "q"], "r"),
        key_of(environment | {"version": "2"}, "t", ["p", "q"], "r"),
        key_of(environment | {"kwargs": {"x": 1, "y": 3}}, "t", ["p", "q"], "r"),
        key_of(environment, "u", ["p", "q"], "r"),
        key_of(environment, "t", ["p"], "r"),
        key_of(environment, "t", ["p q"], "r"),
        key_of(environment, "t", ["p", "q", "r"], ""),
        key_of(environment, "t", ["p", "q"], "s"),
    ]
    assert keys[0] == same
    assert len(set(keys)) == len(keys)


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scrambled(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 40) + content[-36:])


def newer(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_ee.schema": "2"}), path)


def unmarked(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def other_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["key"]), path)


@pytest.mark.parametrize("name", [TRANSITIONS, BRANCHES])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, ["missing"]),
        (empty, ["not a Parquet file"]),
        (cut_off, ["not a Parquet file"]),
        (scrambled, ["not a Parquet file"]),
        (newer, ["schema version 2", "up to 1"]),
        (unmarked, ["schema version (none)"]),
        (other_columns, ["columns", "key"]),
    ],
)
def test_a_store_that_cannot_be_read_is_refused(
    tmp_path: Path, collected: Branches, name: str, damage: Callable[[Path], None], words: list[str]
) -> None:
    write_store(tmp_path, collected.transitions, collected.branches, PROVENANCE)
    damage(tmp_path / name)
    with pytest.raises(StoreError) as raised:
        read_outcomes(tmp_path)
    for word in (str(tmp_path / name), *words):
        assert word in str(raised.value)


def test_a_branch_without_its_transition_is_refused(tmp_path: Path, collected: Branches) -> None:
    write_store(tmp_path, collected.transitions, [*collected.branches, Branch(9, 0, 0, "expert", "feed")], PROVENANCE)
    with pytest.raises(StoreError, match=f"{BRANCHES}: transition feed is not in {TRANSITIONS}"):
        read_outcomes(tmp_path)


DOOMED = '''
import os
from pathlib import Path

import gymnasium

from verl_ee.envs.household.env import Household


class Doomed(Household):
    """Takes its process with it in task train/1, as often as it is told to."""

    def __init__(self, graves, deaths, render_mode=None):
        super().__init__()
        self.graves, self.deaths = Path(graves), deaths

    def step(self, action):
        dead = len(list(self.graves.iterdir()))
        if self.snapshot().task == "train/1" and dead < self.deaths:
            (self.graves / str(dead)).touch()
            os._exit(1)
        return super().step(action)


class Sick(Household):
    """Raises in task train/1."""

    def step(self, action):
        if self.snapshot().task == "train/1":
            raise RuntimeError("no pulse")
        return super().step(action)


gymnasium.register("doomed/Doomed-v0", entry_point=Doomed)
gymnasium.register("doomed/Sick-v0", entry_point=Sick)
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of this module's own, whose workers find the module `doomed`."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "doomed.py").write_text(DOOMED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def experts() -> list[ExpertTrajectory]:
    """The third one saw something that is not there."""
    experts = [Household().expert_trajectory(f"train/{index}") for index in range(5)]
    experts[2] = with_step(experts[2], 1, observation="You see a dragon.")
    return experts


@pytest.fixture(scope="module")
def expected(experts: list[ExpertTrajectory]) -> Branches:
    """What one process gets."""
    total = Branches()
    for index, trajectory in enumerate(experts):
        total.add(branch_trajectory(Household(), trajectory, index, CONFIG))
    return total


def test_workers_collect_what_one_process_collects(
    cluster: None, experts: list[ExpertTrajectory], expected: Branches
) -> None:
    assert len(expected.mismatches) == 1
    for workers in (1, 3):
        config = CONFIG.model_copy(update={"workers": workers})
        assert collect(experts, EnvironmentConfig(id=ID), config) == expected


def test_a_trajectory_whose_worker_died_is_tried_again(
    cluster: None, experts: list[ExpertTrajectory], expected: Branches, tmp_path: Path
) -> None:
    environment = EnvironmentConfig(id="doomed:doomed/Doomed-v0", kwargs={"graves": str(tmp_path), "deaths": TRIES - 1})
    assert collect(experts, environment, CONFIG) == expected
    assert len(list(tmp_path.iterdir())) == TRIES - 1


def test_a_trajectory_that_always_kills_its_worker_is_named(
    cluster: None, experts: list[ExpertTrajectory], tmp_path: Path
) -> None:
    environment = EnvironmentConfig(id="doomed:doomed/Doomed-v0", kwargs={"graves": str(tmp_path), "deaths": 99})
    with pytest.raises(BranchError, match=rf"Trajectory 1 \(task train/1\) failed on {TRIES} environment workers"):
        collect(experts, environment, CONFIG)
    assert len(list(tmp_path.iterdir())) == TRIES


def test_an_environment_that_raises_is_quoted(cluster: None, experts: list[ExpertTrajectory]) -> None:
    with pytest.raises(BranchError, match=r"Trajectory 1 \(task train/1\) failed.*no pulse"):
        collect(experts, EnvironmentConfig(id="doomed:doomed/Sick-v0"), CONFIG)
