"""`verl-ee inspect`: the content of a transition store, or what became of the rationales of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands, at_least


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("inspect", help="describe a transition store, or the rationales of a run")
    parser.add_argument("folder", type=Path, help="folder of a store, or <run>/early_experience for rationales")
    parser.add_argument(
        "--samples", type=at_least(0), default=0, metavar="N", help="show N branches or rationales in full (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> None:
    from verl_ee.objectives.reflection.rationales import RATIONALES_FILE
    from verl_ee.report import rationales_text, store_text

    describe = rationales_text if (args.folder / RATIONALES_FILE).exists() else store_text
    print(describe(args.folder, args.samples, args.seed))
