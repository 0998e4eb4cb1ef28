"""The command `verl-ee`: look at an installation, at environments, record experts, report a run."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_ee.errors import ConfigError, EarlyExperienceError, EnvironmentFault, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 with one message on standard error."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except EarlyExperienceError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verl-ee", description="Early experience for verl.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="versions, what is registered, and every upstream name relied on")
    check.set_defaults(run=_check)

    envs = commands.add_parser("envs", help="environments: what they can do, and task files for verl")
    envs.set_defaults(run=_envs, id=None)
    actions = envs.add_subparsers(metavar="ACTION")
    tasks = actions.add_parser(
        "tasks", help="write tasks of a split as a Parquet file for data.train_files or val_files"
    )
    _environment(tasks)
    tasks.add_argument("--split", action="append", required=True, metavar="SPLIT[:FIRST]", help="may be given again")
    tasks.add_argument("-n", type=int, required=True, help="tasks of each split")
    tasks.add_argument("--out", type=Path, required=True)
    tasks.set_defaults(run=_tasks)

    experts = commands.add_parser("experts", help="expert files")
    actions = experts.add_subparsers(required=True, metavar="ACTION")
    record = actions.add_parser("record", help="play an environment's own expert and write what it did")
    _environment(record)
    record.add_argument("--split", default="train")
    record.add_argument("--first", type=int, default=0, help="index of the first task (default 0)")
    record.add_argument("-n", type=int, required=True, help="trajectories")
    record.add_argument("--out", type=Path, required=True)
    record.set_defaults(run=_record)
    read = actions.add_parser("check", help="check an expert file line by line")
    read.add_argument("file", type=Path)
    read.set_defaults(run=_read)

    report = commands.add_parser("report", help="table and plot of a run, or of several seeds together")
    report.add_argument("folder", type=Path, nargs="+", help="trainer.default_local_dir of a run")
    report.set_defaults(run=_report)
    return parser


def _environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", required=True, metavar="ID", help="Gymnasium id")
    parser.add_argument("--kwarg", action="append", default=[], metavar="KEY=VALUE", help="argument of the environment")


def _make(args: argparse.Namespace) -> Any:
    import yaml

    from verl_ee.envs import make

    kwargs = {}
    for item in args.kwarg:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--kwarg {item!r}: expected KEY=VALUE.")
        kwargs[key] = yaml.safe_load(value)
    return make(args.env, kwargs)


def _tasks_of(env: Any, split: str, needed: str) -> Sequence[str]:
    from verl_ee.envs import Tasks

    unwrapped = env.unwrapped
    if not isinstance(unwrapped, Tasks):
        raise EnvironmentFault(f"{env.spec.id} lists no tasks, which {needed} needs. Give it tasks(split) and splits.")
    if split not in unwrapped.splits:
        raise EnvironmentFault(f"{env.spec.id} has no split {split!r}. {did_you_mean(split, unwrapped.splits)}")
    return unwrapped.tasks(split)


def _check(_: argparse.Namespace) -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    import hydra  # noqa: F401

    # verl hides a plugin that fails to load; imported by name, it shows why.
    import verl_ee.plugin  # noqa: F401
    from verl_ee.trainer import contract

    for package, version in contract.versions().items():
        print(f"{package:16} {version}")
    print()
    for what, where in contract.registered().items():
        print(f"{what:28} {where}")
    print()
    names = contract.NAMES + (contract.ROLLOUT_NAMES if contract.active() else ())
    problems = {str(name): contract.problem_with(name) for name in names}
    for name, problem in problems.items():
        print(f"{'differs' if problem else 'ok':8} {name}{'  ' + problem if problem else ''}")
    broken = contract.conflicts()
    for package in broken:
        print(f"conflict {package} breaks transformers next to a CPU torch. Run: pip uninstall -y {package}")
    unloaded = any("missing" in where for where in contract.registered().values())
    bad = sum(map(bool, problems.values())) + len(broken) + unloaded
    print(f"\n{'ok' if not bad else f'{bad} problems'}")
    return int(bool(bad))


def _envs(_: argparse.Namespace) -> None:
    import gymnasium

    from verl_ee.envs import capabilities, make, version_of
    from verl_ee.envs.contract import NAMESPACE

    print(f"{'id':28} {'version':8} can")
    for name in sorted(gymnasium.registry):
        if name.startswith(NAMESPACE):
            print(f"{name:28} {version_of(name):8} {', '.join(sorted(capabilities(make(name))))}")


def _tasks(args: argparse.Namespace) -> None:
    from verl_ee.experience.tasks import write_tasks

    env = _make(args)
    chosen = []
    for item in args.split:
        split, _, first = item.partition(":")
        if first and not first.isdigit():
            raise ConfigError(f"--split {item!r}: expected SPLIT or SPLIT:FIRST, FIRST a number.")
        start = int(first or 0)
        chosen += [(split, task) for task in _tasks_of(env, split, "a task file")[start : start + args.n]]
    print(f"{write_tasks(args.out, env, chosen)} tasks in {args.out}")


def _record(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from verl_ee.envs import Expert
    from verl_ee.experience.experts import write_experts

    env = _make(args)
    if not isinstance(env.unwrapped, Expert):
        raise EnvironmentFault(
            f"{args.env} has no expert (no expert_trajectory method). Bring an expert file of your own."
        )
    tasks = itertools.islice(_tasks_of(env, args.split, "recording"), args.first, args.first + args.n)
    bar = tqdm(tasks, total=args.n, desc="record", unit="trajectory")
    count = write_experts(args.out, (env.unwrapped.expert_trajectory(task) for task in bar))
    print(f"{count} trajectories in {args.out}")


def _read(args: argparse.Namespace) -> None:
    from verl_ee.experience.experts import load_experts

    trajectories = load_experts(args.file).trajectories
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    solved = sum(trajectory.success for trajectory in trajectories)
    print(f"{len(trajectories)} trajectories, {steps} steps, {solved} solved")


def _report(args: argparse.Namespace) -> None:
    from verl_ee.report import compare, report, save_plot

    if len(args.folder) > 1:
        print(compare(args.folder))
        return
    folder = args.folder[0]
    result = report(folder)
    print(result.text)
    plot = folder / "early_experience" / "report.png"
    save_plot(result, plot)
    print(f"plot: {plot}")
    print(f"summary: {folder / 'early_experience' / 'summary.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
