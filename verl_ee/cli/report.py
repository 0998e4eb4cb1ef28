"""`verl-ee report`: the table and the plot of a run, or several seeds together."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("report", help="show the table and draw the plot of a run, or compare several seeds")
    parser.add_argument("folder", type=Path, nargs="+", help="trainer.default_local_dir of a run")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from verl_ee.report import compare, report, save_plot
    from verl_ee.run.folder import RunFolder

    folders = [RunFolder(folder) for folder in args.folder]
    if len(folders) > 1:
        print(compare(folders))
        return
    result = report(folders[0])
    save_plot(result, folders[0].report_plot)
    print(result.text)
