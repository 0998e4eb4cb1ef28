"""Branch at every state of an expert trajectory: reach the state, prove it, execute one action, record what came back.

Rewards are never read here: early experience is reward-free (paper, section 4.1).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertStep, ExpertTrajectory, Snapshots
from verl_ee.errors import BranchError, EnvironmentFault
from verl_ee.experience.rendering import canonical
from verl_ee.experience.store import Branch, Transition, key_of


@dataclass
class Branches:
    """What branching one trajectory gave.

    Attributes:
        transitions: executed facts.
        branches: one row per alternative and, if asked for, per expert action.
        mismatches: states that could not be proved, each described in full.
        states: states of the trajectory.
        env_steps: environment steps executed, replay included.
        lost: states that were given up, those behind a mismatch included.
    """

    transitions: list[Transition] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    states: int = 0
    env_steps: int = 0
    lost: int = 0

    def add(self, other: Branches) -> None:
        """Add the results of another trajectory."""
        self.transitions += other.transitions
        self.branches += other.branches
        self.mismatches += other.mismatches
        self.states += other.states
        self.env_steps += other.env_steps
        self.lost += other.lost


@dataclass(frozen=True)
class _Seen:
    observation: str
    info: Mapping[str, Any]


def choose_alternatives(
    config: CollectConfig, trajectory: ExpertTrajectory, step: int, listed: Sequence[str] | None = None
) -> list[str]:
    """Return up to K actions, uniform without replacement, the expert's left out.

    The choice depends on seed, task and step alone, so it is the same whichever worker makes it.

    Args:
        config: K and the seed.
        trajectory: what the expert did.
        step: whose state is branched.
        listed: what the environment lists there, for a trajectory that does not record it.
    """
    expert = trajectory.steps[step]
    taken = canonical(expert.action)
    admissible = expert.admissible_actions if expert.admissible_actions is not None else listed or ()
    pool = [action for action in admissible if canonical(action) != taken]
    generator = random.Random(f"{config.seed}:{trajectory.task}:{step}")
    return generator.sample(pool, min(config.k, len(pool)))


def branch_trajectory(
    env: gymnasium.Env[str, str], trajectory: ExpertTrajectory, index: int, config: CollectConfig
) -> Branches:
    """Branch at every state of one trajectory.

    Args:
        env: a fresh or used environment of the trajectory's id.
        trajectory: what the expert did.
        index: position of the trajectory in its file.
        config: which alternatives.

    Returns:
        What was executed. A state that cannot be proved is described in `mismatches`; neither it nor what follows it
        is branched, and all of these count as `lost`.

    Raises:
        EnvironmentFault: if the environment can only be branched by replay and is declared nondeterministic.
    """
    result = Branches(states=len(trajectory.steps))
    walker = _Walker(env, trajectory, result)
    try:
        for step, seen in walker.states():
            _branch_state(walker, trajectory, index, step, seen, config)
    except (_LostError, EnvironmentFault) as error:
        where = f"trajectory {index} (task {trajectory.task}), step {walker.step}"
        result.mismatches.append(f"{where}: {error}")
        result.lost = len(trajectory.steps) - walker.step
    return result


def _branch_state(
    walker: _Walker, trajectory: ExpertTrajectory, index: int, step: int, seen: _Seen, config: CollectConfig
) -> None:
    """Execute every action of a state; the state's branches are kept only if all of them could be executed."""
    recorded = trajectory.steps[step]
    walker.prove(seen)
    listed = seen.info.get("admissible_actions")
    alternatives = choose_alternatives(config, trajectory, step, listed)
    actions: list[tuple[str, str]] = [(action, config.alternatives) for action in alternatives]
    if config.include_expert_transition:
        actions.insert(0, (recorded.action, "expert"))
    environment = {"id": trajectory.environment, "version": trajectory.version, "kwargs": dict(trajectory.kwargs)}
    prefix = tuple(s.action for s in trajectory.steps[:step])
    facts, asked = [], []
    for order, (action, proposer) in enumerate(actions):
        observation, valid, done = walker.execute(action)
        last = proposer == "expert" and step + 1 == len(trajectory.steps)
        if last and observation != trajectory.final_observation:
            raise _LostError(f"{action!r} led to {observation!r}, recorded was {trajectory.final_observation!r}")
        key = key_of(environment, trajectory.task, prefix, action)
        facts.append(Transition(key, trajectory.task, prefix, action, observation, valid, done))
        asked.append(Branch(index, step, order, proposer, key))
    walker.result.transitions += facts
    walker.result.branches += asked


def differs(recorded: ExpertStep, observation: str, info: Mapping[str, Any]) -> str:
    """Return how a state differs from the recorded one, or an empty string."""
    if observation != recorded.observation:
        return f"observation is {observation!r}, recorded was {recorded.observation!r}"
    admissible = info.get("admissible_actions")
    if recorded.admissible_actions is not None and admissible is not None:
        missing = set(recorded.admissible_actions) ^ set(admissible)
        if missing:
            return f"admissible actions differ in {sorted(missing)}"
    return ""


def check_mismatches(result: Branches, config: CollectConfig) -> None:
    """Stop the run if too many states could not be proved.

    Raises:
        BranchError: with the first three in full.
    """
    if result.lost <= config.max_mismatch * result.states:
        return
    shown = "\n  ".join(result.mismatches[:3])
    raise BranchError(
        f"{result.lost} of {result.states} expert states could not be reached again, more than "
        f"early_experience.collect.max_mismatch={config.max_mismatch:g} allows. The expert file does not describe this "
        f"environment: record it again, or check the environment's determinism. First:\n  {shown}"
    )


class _LostError(Exception):
    """A state is not the recorded one; the message says how they differ."""


class _Walker:
    """Walks along a trajectory and executes single actions from its states.

    Attributes:
        step: the state that it walks to or is at.
        result: where environment steps are counted.
    """

    def __init__(self, env: gymnasium.Env[str, str], trajectory: ExpertTrajectory, result: Branches) -> None:
        self.step, self.result = 0, result
        self._env, self._trajectory = env, trajectory
        unwrapped: Any = env.unwrapped
        self._snapshots: Snapshots | None = unwrapped if isinstance(unwrapped, Snapshots) else None
        self._snapshot: Any = None
        if self._snapshots is None and env.spec is not None and env.spec.nondeterministic:
            raise EnvironmentFault(
                f"{trajectory.environment} is declared nondeterministic and has no snapshots, so its states cannot be "
                "reached again. Give it snapshot() and restore()."
            )

    def states(self) -> Iterator[tuple[int, _Seen]]:
        """Yield each step with what is seen there; between two yields the environment may have been used."""
        seen = self._reset()
        for step in range(len(self._trajectory.steps)):
            if step:
                self._return()
                self.step = step
                seen, _ = self._step(self._trajectory.steps[step - 1].action)
            if self._snapshots is not None:
                self._snapshot = self._snapshots.snapshot()
            yield step, seen

    def prove(self, seen: _Seen) -> None:
        """Compare a state with the recorded one.

        Raises:
            _LostError: if they differ.
        """
        problem = differs(self._trajectory.steps[self.step], seen.observation, seen.info)
        if problem:
            raise _LostError(problem)

    def execute(self, action: str) -> tuple[str, bool, bool]:
        """Go back to the present state, prove it, execute `action`.

        Returns:
            Observation, whether the action was valid, whether the episode ended.

        Raises:
            _LostError: if going back leads to another state.
        """
        try:
            self.prove(self._return())
        except _LostError as error:
            raise _LostError(f"after going back, {error}") from None
        outcome, done = self._step(action)
        return outcome.observation, bool(outcome.info.get("valid", True)), done

    def _return(self) -> _Seen:
        if self._snapshots is not None:
            observation, info = self._snapshots.restore(self._snapshot)
            return _Seen(observation, info)
        seen = self._reset()
        for recorded in self._trajectory.steps[: self.step]:
            seen, _ = self._step(recorded.action)
        return seen

    def _reset(self) -> _Seen:
        observation, info = self._env.reset(seed=self._trajectory.seed, options={"task": self._trajectory.task})
        return _Seen(observation, info)

    def _step(self, action: str) -> tuple[_Seen, bool]:
        observation, _, terminated, truncated, info = self._env.step(action)
        self.result.env_steps += 1
        return _Seen(observation, info), bool(terminated or truncated)
