"""The contract of an environment: a Gymnasium id, text in, text out, and optional capabilities.

The info dict of `reset`, `step` and `restore` may hold:

- `task`: the instruction, text;
- `admissible_actions`: the actions that are possible now, a tuple of text in a fixed order;
- `success`: whether the task is solved, bool;
- `valid`: whether the last action was understood and possible, bool; missing, that is not known;
- `outcome_class`: the class of the last action's outcome, text, for instance the kind of a violated constraint.

The class of an environment may declare more (`verl_ee.envs.declarations`).

A capability is a protocol that the unwrapped environment fulfils; nothing is looked up by an environment's name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from verl_ee.errors import EnvError, did_you_mean

NAMESPACE = "verl_ee/"
TextEnv = gymnasium.Env[str, str]
"""An environment whose observations and actions are text."""
Info = dict[str, Any]
"""The info dict of Gymnasium: an environment may put anything into it besides the keys above."""


@dataclass(frozen=True)
class ExpertStep:
    """One step of an expert: the observation before it, and the action.

    Attributes:
        observation: the observation before the action.
        action: the action taken.
        thought: the reason for the action, or None.
        admissible_actions: actions that the environment listed before the action, or None.
        solved: whether the task was solved before the step; None: not known.
    """

    observation: str
    action: str
    thought: str | None = None
    admissible_actions: tuple[str, ...] | None = None
    solved: bool | None = None


@dataclass(frozen=True)
class ExpertTrajectory:
    """One episode of an expert, with all that is needed to repeat it. None leaves open what a play can find out.

    Attributes:
        environment: Gymnasium id.
        version: version of the environment (see `version_of`).
        task: id of the task.
        instruction: the instruction that the agent was given, or None where it is open.
        steps: the steps, in order.
        final_observation: the observation after the last action, or None where it is open.
        success: whether the task was solved.
        kwargs: arguments of the environment.
        seed: seed of the reset, or None where the task alone decides.
    """

    environment: str
    version: str
    task: str
    instruction: str | None
    steps: tuple[ExpertStep, ...]
    final_observation: str | None
    success: bool
    kwargs: Mapping[str, object] = field(default_factory=dict)
    seed: int | None = None


@runtime_checkable
class Snapshots(Protocol):
    """The environment can leave and re-enter a state."""

    def snapshot(self) -> object:
        """Return the present state; it can be pickled and later steps do not change it."""
        ...

    def restore(self, state: object) -> tuple[str, Info]:
        """Re-enter `state` and return its observation and info, as they were when it was first reached.

        Raises:
            EnvError: if `state` is not a snapshot of such an environment.
        """
        ...


@runtime_checkable
class Expert(Protocol):
    """The environment can show how a task is solved."""

    def expert_trajectory(self, task: str) -> ExpertTrajectory:
        """Return a trajectory for `task`; the state of the environment itself does not change.

        Raises:
            EnvError: if the task is unknown.
        """
        ...


@runtime_checkable
class Tasks(Protocol):
    """The environment lists its tasks; `reset(options={"task": id})` starts one."""

    splits: tuple[str, ...]

    def tasks(self, split: str) -> Sequence[str]:
        """Return the ids of the tasks in `split`.

        Raises:
            EnvError: if the split is unknown.
        """
        ...


@runtime_checkable
class AdmissibleActions(Protocol):
    """The environment lists the possible actions, in `info["admissible_actions"]` too."""

    def admissible_actions(self) -> tuple[str, ...]:
        """Return all actions that are possible now, in a fixed order."""
        ...


_CAPABILITIES: dict[str, type] = {
    "snapshots": Snapshots,
    "expert": Expert,
    "tasks": Tasks,
    "admissible_actions": AdmissibleActions,
}


def capabilities(env: TextEnv) -> frozenset[str]:
    """Return which of "snapshots", "expert", "tasks" and "admissible_actions" the unwrapped `env` has."""
    return frozenset(name for name, protocol in _CAPABILITIES.items() if isinstance(env.unwrapped, protocol))


def arguments(env_id: str, kwargs: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return all arguments of an environment, defaults filled in, so that two ways to write the same are equal.

    Raises:
        EnvError: if the id is unknown, or the environment does not take these arguments.
    """
    given = dict(kwargs or {})
    spec = _spec(env_id)
    signature = inspect.signature(creator_of(env_id))
    try:
        bound = signature.bind(**{**spec.kwargs, **given})
    except TypeError as error:
        wrong = [name for name in given if name not in signature.parameters]
        names = list(signature.parameters)
        hint = did_you_mean(wrong[0], names) if wrong else f"Arguments: {', '.join(names)}."
        raise EnvError(f"{env_id} does not take the arguments {given!r}: {error}. {hint}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def make(env_id: str, kwargs: Mapping[str, object] | None = None) -> TextEnv:
    """Return a new environment, without the checking wrapper of Gymnasium.

    Args:
        env_id: a registered Gymnasium id, or `module:id` to import the module that registers it.
        kwargs: arguments of the environment.

    Raises:
        EnvError: if the id is unknown, what it needs is not installed, it does not take these arguments, or it
            raises while it is made.
    """
    given: dict[str, Any] = dict(kwargs or {})
    arguments(env_id, given)
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **given)
    except Exception as error:  # the environment is somebody else's code
        raise EnvError(
            f"{env_id} cannot be made with the arguments {given!r}: {type(error).__name__}: {error}. Repair the "
            "environment, or choose other arguments."
        ) from error


def creator_of(env_id: str) -> Callable[..., object]:
    """Return the class of an environment, or the function that makes it.

    Raises:
        EnvError: if the id is unknown, or what it needs is not installed.
    """
    spec = _spec(env_id)
    entry = spec.entry_point
    if entry is None:
        raise EnvError(f"{spec.id} is registered without an entry point. Register it with one.")
    if not isinstance(entry, str):
        return entry
    try:
        return load_env_creator(entry)
    except ImportError as error:
        raise EnvError(f"{spec.id} cannot be imported: {error}. Install what it needs.") from error


def without_module(env_id: str) -> str:
    """Return an id without the module that registers it: two ids that differ in it name one environment."""
    return env_id.rpartition(":")[2]


def nondeterministic(env_id: str) -> bool:
    """Return whether an environment is registered as one in which the same actions may lead to other observations.

    Raises:
        EnvError: if the id is unknown.
    """
    return bool(_spec(env_id).nondeterministic)


def _spec(env_id: str) -> EnvSpec:
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            _import(module)
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        ids = list(gymnasium.registry)
        near = difflib.get_close_matches(env_id, ids, n=3)
        offered = {name for name in ids if name.startswith(NAMESPACE)} | set(near)
        own = "" if module else " An environment of your own is named MODULE:ID, with the module that registers it."
        raise EnvError(f"No environment has the id {env_id!r}. {did_you_mean(env_id, offered)}{own}") from error


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the module is somebody else's code
        raise EnvError(
            f"Module {module!r}, which is to register the environment, cannot be imported: {type(error).__name__}: "
            f"{error}. Repair it."
        ) from error
