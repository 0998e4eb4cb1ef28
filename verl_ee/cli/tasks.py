"""Tasks of an environment, as commands choose them: some of a split, from a first one on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verl_ee.errors import ConfigError, EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium


def tasks_of(env: gymnasium.Env[str, str], split: str, purpose: str) -> Sequence[str]:
    """Return the tasks of a split.

    Args:
        env: the environment.
        split: name of the split.
        purpose: what needs the tasks, as the subject of a sentence.

    Raises:
        EnvError: if the environment lists no tasks, or has no such split.
    """
    from verl_ee.envs import Tasks

    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    unwrapped = env.unwrapped
    if not isinstance(unwrapped, Tasks):
        raise EnvError(f"{name} lists no tasks, which {purpose} needs. Give it tasks(split) and splits.")
    if split not in unwrapped.splits:
        raise EnvError(f"{name} has no split {split!r}. {did_you_mean(split, unwrapped.splits)}")
    return unwrapped.tasks(split)


def tasks_from(tasks: Sequence[str], split: str, first: int, count: int) -> Sequence[str]:
    """Return the tasks from the index `first` on: `count`, fewer where the split ends, but at least one.

    Raises:
        ConfigError: if the split ends before.
    """
    chosen = tasks[first : first + count]
    if not chosen:
        raise ConfigError(f"Split {split!r} has {len(tasks)} tasks, so there is none from number {first} on.")
    return chosen
