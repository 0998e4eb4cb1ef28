"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from verl_ee.errors import ConfigError, not_yaml

if TYPE_CHECKING:
    import gymnasium
    from pydantic import JsonValue

    from verl_ee.config import EnvironmentConfig

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The list of commands, or of the actions of one, to which a parser is added."""


class RenamedOption(argparse.Action):
    """An option of version 0.1, refused with the name that it has now; its value may follow."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        """Refuse the option.

        Args:
            option_strings: its old name.
            dest: `dest` of the argument, as in argparse.
            const: its new name.
        """
        super().__init__(option_strings, dest, nargs="?", const=const, help=argparse.SUPPRESS)

    def __call__(self, *_: object) -> None:
        """Refuse it.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.option_strings[0]} is now called {self.const}. Use {self.const}.")


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers that are not smaller than `least`."""

    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return number


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add the required `--env`, and `--kwarg`."""
    parser.add_argument("--env", required=True, metavar="ID", help="Gymnasium id of the environment")
    add_kwargs(parser)


def add_kwargs(parser: argparse.ArgumentParser) -> None:
    """Add `--kwarg`."""
    parser.add_argument(
        "--kwarg", action="append", default=[], metavar="KEY=VALUE", help="argument of the environment; may be repeated"
    )


def add_experts_filter(parser: argparse.ArgumentParser) -> None:
    """Add `--experts-filter`."""
    parser.add_argument(
        "--experts-filter",
        choices=("successful", "all"),
        default="successful",
        help="trajectories of the expert file that are used: those that solved their task (default), or all",
    )


def environment_of(args: argparse.Namespace) -> EnvironmentConfig:
    """Return the environment that `--env` and `--kwarg` name.

    Raises:
        ConfigError: if an argument of the environment cannot be read.
    """
    from verl_ee.config import EnvironmentConfig

    return EnvironmentConfig(id=args.env, kwargs=_kwargs(args.kwarg))


def make_environment(args: argparse.Namespace) -> gymnasium.Env[str, str]:
    """Make the environment that `--env` and `--kwarg` name.

    Raises:
        ConfigError: if an argument of the environment cannot be read.
        EnvError: if it is unknown or cannot be made.
    """
    from verl_ee.envs import make

    environment = environment_of(args)
    return make(environment.id, environment.kwargs)


def _kwargs(items: Sequence[str]) -> dict[str, JsonValue]:
    import yaml

    kwargs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--kwarg {item!r}: expected KEY=VALUE.")
        try:
            kwargs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise not_yaml(f"--kwarg {item!r}", error) from None
    return kwargs
