"""Snapshots of an environment together with the wrappers around it, whose state belongs to the episode too.

`gymnasium.wrappers.TimeLimit` counts steps: if only the environment went back, the count would go on, and episodes
would end too early. A snapshot therefore holds the attributes of every wrapper as well. It can hold values that never
change; a wrapper that keeps anything else needs `snapshot()` and `restore()` of its own, which then stand for all that
it wraps. A wrapper that has neither is refused, because its state could be lost in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics

from verl_ee.envs.contract import Info, Snapshots, TextEnv
from verl_ee.errors import EnvError

_Wrapper = gymnasium.Wrapper[Any, Any, Any, Any]
_COPIED = (RecordEpisodeStatistics,)
"""Wrappers whose attributes are known to be plain data that nothing else refers to."""
_OF_GYMNASIUM = frozenset({"env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "_saved_kwargs"})
"""Attributes that every wrapper has and no step changes."""
_UNCHANGING = (type(None), bool, int, float, complex, str, bytes)
_CODE = (FunctionType, staticmethod, classmethod, property, type)


@dataclass(frozen=True)
class WrappedSnapshot:
    """A state of an environment and of the wrappers around it.

    Attributes:
        state: snapshot of the environment, or of the wrapper that has snapshots itself.
        attributes: attributes of the wrappers around that, from the outermost.
    """

    state: object
    attributes: tuple[dict[str, object], ...]


def snapshot_problem(env: TextEnv) -> str:
    """Return why an environment with its wrappers has no exact snapshots, as the end of a sentence; empty if it has."""
    wrappers, base = _layers(env)
    if not isinstance(base, Snapshots):
        return "has no snapshot() and restore()"
    problems = (_state_problem(wrapper, [*wrappers, base, base.unwrapped]) for wrapper in wrappers)
    return next(filter(None, problems), "")


def take_snapshot(env: TextEnv) -> WrappedSnapshot:
    """Return the present state of an environment and of its wrappers.

    Raises:
        EnvError: if that state cannot be saved exactly.
    """
    problem = snapshot_problem(env)
    if problem:
        raise EnvError(f"{env} {problem}.")
    wrappers, base = _layers(env)
    return WrappedSnapshot(cast(Snapshots, base).snapshot(), tuple(map(_attributes, wrappers)))


def restore_snapshot(env: TextEnv, snapshot: WrappedSnapshot) -> tuple[str, Info]:
    """Re-enter a state that `take_snapshot` returned for this environment, and return its observation and info."""
    wrappers, base = _layers(env)
    view = cast(Snapshots, base).restore(snapshot.state)
    for wrapper, attributes in zip(wrappers, snapshot.attributes, strict=True):
        for name in [name for name in vars(wrapper) if name not in _OF_GYMNASIUM and name not in attributes]:
            delattr(wrapper, name)
        vars(wrapper).update(_copied(wrapper, attributes))
    return view


def _layers(env: TextEnv) -> tuple[list[_Wrapper], TextEnv]:
    """Return the wrappers, from the outermost, and what they wrap: the first layer that has snapshots itself."""
    wrappers = list[_Wrapper]()
    while isinstance(env, gymnasium.Wrapper) and not _has_own_snapshots(env):
        wrappers.append(env)
        env = env.env
    return wrappers, env


def _has_own_snapshots(wrapper: _Wrapper) -> bool:
    # Asked of the class: a wrapper may forward every name that it does not know to the environment.
    return all(callable(getattr(type(wrapper), name, None)) for name in ("snapshot", "restore"))


def _attributes(wrapper: _Wrapper) -> dict[str, object]:
    return _copied(wrapper, {name: value for name, value in vars(wrapper).items() if name not in _OF_GYMNASIUM})


def _copied(wrapper: _Wrapper, attributes: dict[str, object]) -> dict[str, object]:
    """Return a copy that later steps do not change."""
    return copy.deepcopy(attributes) if type(wrapper) in _COPIED else dict(attributes)


def _state_problem(wrapper: _Wrapper, layers: Sequence[object]) -> str:
    """Return what stands against saving a wrapper's attributes, as the end of a sentence, or an empty string."""
    if type(wrapper) in _COPIED:
        return ""
    own = {name: value for name, value in vars(wrapper).items() if name not in _OF_GYMNASIUM}
    kept = {name: value for name, value in own.items() if not any(value is layer for layer in layers)}
    for cls in type(wrapper).__mro__:
        if cls not in gymnasium.Wrapper.__mro__:
            kept |= {name: value for name, value in vars(cls).items() if not _is_code(name, value)}
    for name, value in kept.items():
        if name == "__slots__" or not _never_changes(value):
            return (
                f"is in the wrapper {type(wrapper).__name__}, which has a state of its own ({name!r}, "
                f"{type(value).__name__}) and no snapshot() and restore()"
            )
    return ""


def _is_code(name: str, value: object) -> bool:
    """Return whether an attribute of a class is a part of its code, or of its description."""
    described = name.startswith("__") and name != "__slots__"
    return described or name in ("metadata", "_abc_impl") or isinstance(value, _CODE)


def _never_changes(value: object) -> bool:
    if isinstance(value, tuple | frozenset):
        return type(value) in (tuple, frozenset) and all(map(_never_changes, value))
    return type(value) in _UNCHANGING or isinstance(value, np.generic)
