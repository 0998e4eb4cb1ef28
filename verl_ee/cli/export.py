"""`verl-ee export`: the rows that a run learns from, in a form that others read."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands, add_kwargs, environment_of
from verl_ee.errors import ConfigError


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("export", help="write the examples of a run in a form that others read")
    parser.add_argument("--run", type=Path, dest="folder", metavar="FOLDER", help="trainer.default_local_dir of a run")
    parser.add_argument("--env", metavar="ID", help="without a run: Gymnasium id of the environment")
    add_kwargs(parser)
    parser.add_argument("--experts", type=Path, metavar="FILE", help="without a run: expert file")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="without a run: branches, for the world model")
    parser.add_argument(
        "--reflections", type=Path, metavar="FOLDER", help="without a run: folder of rationales, for reflection"
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="key of early_experience, for instance world_model.target=difference",
    )
    parser.add_argument(
        "--format", choices=("messages", "verl-sft"), required=True, help="JSON lines, or Parquet for verl's SFT"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write into")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from verl_ee.cli.exported_rows import config_of_files, config_of_run, rows_of
    from verl_ee.objectives.files.row_files import export_messages, export_parquet
    from verl_ee.run.folder import RunFolder

    _check_source(args)
    if args.folder is not None:
        folder = RunFolder(args.folder)
        config, texts = config_of_run(folder, args.settings), folder.files
    else:
        config = config_of_files(environment_of(args), args.experts, args.store, args.reflections, args.settings)
        texts = args.reflections or args.store or args.experts.parent
    write = export_messages if args.format == "messages" else export_parquet
    for path, count in write(args.out, rows_of(config, texts)).items():
        print(f"{count} examples in {path}")


def _check_source(args: argparse.Namespace) -> None:
    """Refuse a run and files together, and neither of them."""
    files = [args.env, args.experts, args.store, args.reflections, *args.kwarg]
    if args.folder is not None and any(item is not None for item in files):
        raise ConfigError("--run names environment and files. Leave the others out; KEY=VALUE changes a setting.")
    if args.folder is None and (args.env is None or args.experts is None):
        raise ConfigError("Say what is exported: --run FOLDER of a run, or --env ID and --experts FILE.")
