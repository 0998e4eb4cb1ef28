"""The parser of `verl-ee`, and the exit status and message of an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from verl_ee.cli import check, collect, envs, experts, export, imports, inspect, report
from verl_ee.errors import EarlyExperienceError

COMMANDS = (check, envs, experts, collect, inspect, export, imports, report)
"""Modules of the commands, in the order in which `verl-ee --help` lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 1 with one message on standard error; 130 if interrupted.

    Args:
        argv: arguments of the command line; None takes those of the process.
    """
    try:
        args = _parser().parse_args(argv)
        return int(args.run(args) or 0)
    except EarlyExperienceError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}. Name another path, or make it accessible.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. All files so far are kept; the same command goes on from there.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verl-ee", description="Early experience for verl.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser
