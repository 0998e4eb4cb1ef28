"""`verl-ee experts`: record the expert of an environment, or check an expert file."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands, add_environment, at_least, make_environment
from verl_ee.cli.tasks import tasks_from, tasks_of
from verl_ee.errors import EnvError


def add_to(commands: Commands) -> None:
    """Add the command with its actions."""
    actions = commands.add_parser("experts", help="record or check expert files").add_subparsers(
        required=True, metavar="ACTION"
    )
    record = actions.add_parser("record", help="play an environment's own expert, and write its trajectories")
    add_environment(record)
    record.add_argument("--split", default="train", help="split of the tasks (default train)")
    record.add_argument("--first", type=at_least(0), default=0, help="index of the first task (default 0)")
    record.add_argument("-n", type=at_least(1), required=True, help="number of trajectories")
    record.add_argument("--out", type=Path, required=True, metavar="FILE", help="expert file to write")
    record.set_defaults(run=_record)

    check = actions.add_parser("check", help="check an expert file line by line")
    check.add_argument("file", type=Path, help="expert file")
    check.set_defaults(run=_check)


def _record(args: argparse.Namespace) -> None:
    from verl_ee.envs import Expert
    from verl_ee.experience.expert_files import write_experts
    from verl_ee.experience.progress import progress_bar

    env = make_environment(args)
    if not isinstance(env.unwrapped, Expert):
        raise EnvError(f"{args.env} has no expert (no expert_trajectory method). Bring an expert file of your own.")
    tasks = tasks_from(tasks_of(env, args.split, "recording"), args.split, args.first, args.n)
    with progress_bar(len(tasks), "record", "trajectory", items=tasks) as bar:
        count = write_experts(args.out, (env.unwrapped.expert_trajectory(task) for task in bar))
    print(f"{count} trajectories in {args.out}")


def _check(args: argparse.Namespace) -> None:
    from verl_ee.experience.expert_files import load_experts

    trajectories = load_experts(args.file).trajectories
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    solved = sum(trajectory.success for trajectory in trajectories)
    print(f"{len(trajectories)} trajectories, {steps} steps, {solved} solved")
