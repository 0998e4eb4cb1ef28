"""`verl-ee import`: examples or experts that others wrote become a rows file or an expert file."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands, add_kwargs, environment_of
from verl_ee.errors import ConfigError


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("import", help="read examples or experts that others wrote")
    parser.add_argument(
        "path", type=Path, nargs="+", help="file to read; for messages also a folder with the three files"
    )
    parser.add_argument("--format", choices=("messages", "agentgym"), required=True, help="form of what is read")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="rows file (messages) or expert file (agentgym)"
    )
    parser.add_argument(
        "--turns", choices=("last", "all"), help="messages: which responses of a conversation are learned"
    )
    parser.add_argument("--env", metavar="ID", help="agentgym: Gymnasium id of the environment")
    add_kwargs(parser)
    parser.add_argument(
        "--goal", metavar="REGEX", help="agentgym: pattern that finds the instruction in the first observation"
    )
    parser.add_argument(
        "--instruction",
        choices=("first", "environment"),
        default="first",
        help="agentgym, without --goal: the instruction is the first message, or left to the environment",
    )
    parser.add_argument(
        "--success", action="store_true", help="agentgym: count items that do not say whether they are solved as solved"
    )
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> None:
    if args.format == "messages":
        _import_messages(args)
    else:
        _import_agentgym(args)


def _import_messages(args: argparse.Namespace) -> None:
    from verl_ee.objectives.files.row_files import import_messages, write_rows

    counts = write_rows(args.out, (row for path in args.path for row in import_messages(path, args.turns)))
    print(f"{', '.join(f'{count} {objective}' for objective, count in counts.items())} in {args.out}")


def _import_agentgym(args: argparse.Namespace) -> None:
    from verl_ee.experience.agentgym import read_agentgym
    from verl_ee.experience.expert_files import write_experts

    if args.env is None:
        raise ConfigError("--format agentgym needs --env ID: an expert file names the environment it is for.")
    environment = environment_of(args)
    trajectories = (
        trajectory
        for path in args.path
        for trajectory in read_agentgym(path, environment, args.goal, args.success, args.instruction)
    )
    print(f"{write_experts(args.out, trajectories)} trajectories in {args.out}")
