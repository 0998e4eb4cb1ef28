"""The household: deterministic, exact snapshots and admissible actions, experts that succeed, a real held-out split."""

from __future__ import annotations

import pickle
import random
import re
import subprocess
import sys
from itertools import islice
from statistics import mean
from typing import Any

import gymnasium
import pytest
from support.prompts import BARE_FORM

from verl_ee.envs import Expert, Snapshots, Tasks, capabilities, make, register_envs, version_of
from verl_ee.envs.household import tables
from verl_ee.envs.household.env import Household
from verl_ee.envs.household.tasks import house_of
from verl_ee.errors import EnvError
from verl_ee.prompts.state import State, Turn, recent

ID = "verl_ee/Household-v0"
GOLDEN = "afcbc55f432fe87557251d0904d1a63da55f0a7c8b58d71b23ba29652d3deb32"
DIGEST = """
import hashlib
from verl_ee.envs.household.env import Household
digest = hashlib.sha256()
for size in ("small", "medium", "large"):
    env = Household(size)
    for split in env.splits:
        for task in env.tasks(split)[:30]:
            digest.update(repr(env.expert_trajectory(task)).replace(", solved=False", "").encode())
print(digest.hexdigest())
"""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def random_walk(env: Household, task: str, rng: random.Random, length: int) -> None:
    """Play admissible actions, but leave the episode open."""
    _, info = env.reset(options={"task": task})
    for _ in range(length):
        before = env.snapshot()
        _, _, terminated, truncated, info = env.step(rng.choice(info["admissible_actions"]))
        if terminated or truncated:
            _, info = env.restore(before)


def test_two_processes_tell_the_same_and_the_worlds_stay_as_they_are() -> None:
    runs = [subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True) for _ in range(2)]
    assert [run.stdout.strip() for run in runs] == [GOLDEN, GOLDEN], runs[0].stderr


def test_a_restored_state_continues_as_straight_play_does() -> None:
    rng = random.Random(1)
    env, other = Household(), Household()
    for trial in range(2000):
        random_walk(env, f"{rng.choice(env.splits)}/{trial}", rng, rng.randrange(20))
        state = pickle.loads(pickle.dumps(env.snapshot()))
        actions = [rng.choice([*env.admissible_actions(), "nonsense"]) for _ in range(2)]
        straight = play(env, actions)
        env.reset(options={"task": "train/0"})
        for player in (env, other):
            player.restore(state)
            assert player.snapshot() == state
            assert play(player, actions) == straight


def play(env: Household, actions: list[str]) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    """Return the results of `actions`, up to the end of the episode."""
    results = []
    for action in actions:
        results.append(env.step(action))
        if results[-1][2] or results[-1][3]:
            break
    return results


def test_restore_returns_what_was_seen_when_the_state_was_reached() -> None:
    env = Household()
    rng = random.Random(2)
    seen = [(env.reset(options={"task": "seen/7"}), env.snapshot())]
    for _ in range(12):
        observation, _, terminated, _, info = env.step(rng.choice([*env.admissible_actions(), "fly"]))
        seen.append(((observation, info), env.snapshot()))
        if terminated:
            break
    rng.shuffle(seen)
    assert all(env.restore(state) == result for result, state in seen)


def test_admissible_actions_are_exact_and_the_others_change_nothing() -> None:
    rng = random.Random(3)
    env = Household()
    for trial in range(150):
        random_walk(env, f"{rng.choice(env.splits)}/{trial}", rng, rng.randrange(15))
        before, listed = env.snapshot(), env.admissible_actions()
        assert len(set(listed)) == len(listed)
        for action in {*listed, *tries(before.task), "", "go to", "take", "open lamp 1", "look at", "go to moon 1"}:
            env.restore(before)
            observation, _, _, _, info = env.step(action)
            assert info["valid"] == (action in listed), action
            if not info["valid"]:
                assert env.snapshot().state == before.state
                assert info["admissible_actions"] == listed
                assert len(words(observation)) <= 5


def tries(task: str) -> set[str]:
    """Every action that could be possible somewhere in the house of a task."""
    house = house_of(task, "small")
    spots, things = [r.name for r in house.receptacles], [t.name for t in house.things]
    found = {f"{verb} {name}" for verb in ("go to", "open", "close", "examine") for name in [*spots, *things]}
    found |= {f"take {thing} from {spot}" for thing in things for spot in spots}
    found |= {f"put {thing} {way} {spot}" for thing in things for way in ("in", "on") for spot in spots}
    found |= {f"{verb} {t} with {s}" for verb in tables.TREATMENTS for t in things for s in spots}
    return found | {"switch on lamp 1", "switch on lamp 2", "inventory", "look"}


def test_upper_case_and_spaces_do_not_matter() -> None:
    env = Household()
    env.reset(options={"task": "train/0"})
    assert env.step("  LOOK ")[4]["valid"]


@pytest.mark.parametrize("split", Household.splits)
def test_both_experts_succeed_and_knowing_all_is_never_slower(split: str) -> None:
    env = Household()
    for task in env.tasks(split)[:500]:
        search, shortest = env.expert_trajectory(task), env.expert_trajectory(task, "shortest")
        assert search.success, task
        assert shortest.success, task
        assert len(shortest.steps) <= len(search.steps) <= 30, task


@pytest.mark.parametrize("size", ["medium", "large"])
def test_the_expert_succeeds_in_larger_houses(size: str) -> None:
    env = Household(size)
    assert all(env.expert_trajectory(task).success for split in env.splits for task in env.tasks(split)[:60])


def test_only_the_last_step_of_an_expert_is_rewarded() -> None:
    env = Household()
    for task in env.tasks("train")[:60]:
        observation, _ = env.reset(options={"task": task})
        trajectory = env.expert_trajectory(task)
        results = []
        for step in trajectory.steps:
            assert (step.observation, step.admissible_actions) == (observation, env.admissible_actions())
            observation, reward, terminated, truncated, info = env.step(step.action)
            results.append((reward, terminated, truncated, info["success"]))
        assert observation == trajectory.final_observation
        assert results == [(0.0, False, False, False)] * (len(results) - 1) + [(1.0, True, False, True)]


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_progress_is_whole_when_the_task_is_solved_and_never_before(split: str) -> None:
    env = Household(reward="progress")
    for task in env.tasks(split)[:120]:
        env.reset(options={"task": task})
        rewards = []
        for step in env.expert_trajectory(task).steps:
            _, reward, terminated, _, info = env.step(step.action)
            assert (reward == 1.0) == terminated == info["success"]
            rewards.append(reward)
        assert 0.0 <= min(rewards) < 1.0 == rewards[-1]
        # Something is gained before the last action: the object has to be in hand.
        assert max(rewards[:-1]) > 0.0


def test_progress_counts_the_conditions_of_the_goal() -> None:
    env = Household(reward="progress")
    for task in env.tasks("train")[:400]:
        env.reset(options={"task": task})
        steps = env.expert_trajectory(task, "shortest").steps
        instruction = env.reset(options={"task": task})[1]["task"]
        rewards = [env.step(step.action)[1] for step in steps]
        if any(word in instruction for word in ("clean", "heat", "hot", "cool", "cold", "two", "lamp", "light")):
            continue
        taken = next(i for i, step in enumerate(steps) if step.action.startswith("take"))
        assert rewards == [0.0] * taken + [0.5] * (len(rewards) - 1 - taken) + [1.0]
        return
    raise AssertionError("no task of the plain kind among 400")


def test_random_play_hardly_ever_succeeds() -> None:
    env, rng, successes = Household(), random.Random(4), 0
    for task in env.tasks("train")[:1000]:
        _, info = env.reset(options={"task": task})
        done = False
        while not done:
            _, _, terminated, truncated, info = env.step(rng.choice(info["admissible_actions"]))
            done = terminated or truncated
        successes += info["success"]
    assert successes < 20


def test_held_out_kinds_and_phrasings_stay_out_of_train_and_seen() -> None:
    known = {kind for room in tables.ROOMS.values() for kind in (*room.objects, *room.receptacles)}
    novel = {kind for room in tables.ROOMS.values() for kind in (*room.novel_objects, *room.novel_receptacles)}
    assert not known & novel
    assert not {t for ts in tables.INSTRUCTIONS.values() for t in ts} & {
        t for ts in tables.NOVEL_INSTRUCTIONS.values() for t in ts
    }
    for split in Household.splits:
        for task in Household().tasks(split)[:300]:
            house = house_of(task, "small")
            kinds = {spot.kind for spot in house.receptacles} | {thing.kind for thing in house.things}
            if split == "unseen":
                assert house.goal.thing in novel
                assert house.goal.receptacle in novel | {""}
                assert kinds & novel & {spot.kind for spot in house.receptacles}
            else:
                assert not kinds & novel


def test_prompts_fit_a_tiny_model_and_train_has_every_word() -> None:
    env, lengths, observations, listed = Household(), [], [], []
    vocabulary: dict[str, set[str]] = {split: set() for split in env.splits}
    for split in env.splits:
        for task in env.tasks(split)[:300]:
            trajectory = env.expert_trajectory(task)
            history: list[Turn] = []
            for step in trajectory.steps:
                state = State(trajectory.instruction, recent(history, 8), step.observation, step.admissible_actions)
                prompt = words("\n".join(message["content"] for message in BARE_FORM.policy_prompt(state)))
                vocabulary[split] |= set(prompt)
                lengths.append(len(prompt))
                observations.append(len(words(step.observation)))
                listed.append(len(step.admissible_actions or ()))
                history.append(Turn(step.observation, step.action))
    assert vocabulary["unseen"] <= vocabulary["train"]
    assert len(vocabulary["train"] | vocabulary["seen"]) < 300
    assert mean(lengths) < 220
    assert max(lengths) < 300
    assert sum(length <= 20 for length in observations) / len(observations) > 0.9
    assert min(listed) >= 6
    assert max(listed) <= 16


def test_tasks_are_addressed_by_split_and_number() -> None:
    ids = Household().tasks("seen")
    assert len(ids) == 10_000
    assert [ids[0], ids[-1], *ids[5:7]] == ["seen/0", "seen/9999", "seen/5", "seen/6"]
    assert list(islice(ids, 2)) == ["seen/0", "seen/1"]


def test_without_a_task_the_seed_draws_one() -> None:
    env = Household()
    assert env.reset(seed=5) == env.reset(seed=5)
    assert len({env.reset(seed=seed)[0] for seed in range(20)}) > 10


def test_the_episode_is_truncated_and_then_over() -> None:
    env = Household(max_steps=2)
    env.reset(options={"task": "train/0"})
    assert env.step("look")[2:4] == (False, False)
    assert env.step("look")[2:4] == (False, True)
    with pytest.raises(EnvError, match="has ended"):
        env.step("look")


@pytest.mark.parametrize("task", ["train/10000", "train/-1", "train/01", "train", "other/3", ""])
def test_unknown_tasks_are_named(task: str) -> None:
    with pytest.raises(EnvError, match=r"no task .* Expected"):
        Household().reset(options={"task": task})


def test_misuse_says_what_to_do() -> None:
    env = Household()
    with pytest.raises(EnvError, match="Call reset"):
        env.step("look")
    env.reset(seed=0)
    for call in (lambda: env.restore("x"), lambda: env.restore(Household("large")), lambda: env.step(3)):  # type: ignore[arg-type]
        with pytest.raises(EnvError):
            call()
    with pytest.raises(EnvError, match="Did you mean 'unseen'"):
        env.tasks("unsen")
    with pytest.raises(EnvError, match="Did you mean 'shortest'"):
        env.expert_trajectory("train/0", "shortes")
    with pytest.raises(EnvError, match="at least 1"):
        Household(max_steps=0)


def test_make_finds_the_environment_and_its_capabilities() -> None:
    register_envs()
    env = make(ID, {"size": "medium"})
    inner = env.unwrapped
    assert isinstance(inner, Snapshots)
    assert isinstance(inner, Expert)
    assert isinstance(inner, Tasks)
    assert capabilities(env) == {"snapshots", "expert", "tasks", "admissible_actions"}
    assert env.spec is not None
    assert not env.spec.nondeterministic
    assert version_of(ID) == Household.version
    assert make(f"verl_ee.envs:{ID}").unwrapped is not None


def test_make_explains_unknown_ids_and_arguments() -> None:
    for wrong in ("verl_ee/Houshold-v0", "Household-v0", "no_such_module:Household-v0"):
        with pytest.raises(EnvError, match=ID):
            make(wrong)
    with pytest.raises(EnvError, match="Did you mean 'size'"):
        make(ID, {"sise": "small"})
    with pytest.raises(EnvError, match="Did you mean 'medium'"):
        make(ID, {"size": "medum"})


def test_an_environment_of_others_has_no_capabilities_but_a_version() -> None:
    env_id = "CartPole-v1"
    assert capabilities(make(env_id)) == frozenset()
    assert version_of(env_id) == gymnasium.__version__
