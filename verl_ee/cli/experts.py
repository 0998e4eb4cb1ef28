"""`verl-ee experts`: record the expert of an environment, complete an expert file, or check one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from verl_ee.cli.options import Commands, add_environment, at_least, environment_of, make_environment
from verl_ee.cli.tasks import tasks_from, tasks_of
from verl_ee.errors import EnvError

if TYPE_CHECKING:
    from verl_ee.envs import ExpertTrajectory

OPTIONS = {
    "workers": "number of processes that step environments",
    "step_timeout": "seconds that a step may take",
    "start_timeout": "seconds that making or resetting the environment may take",
    "max_mismatch": "share of states that may be lost, with the trajectories that cannot be played",
}
"""Keys of `early_experience.collect.<set>` that are options of `complete`, with the same defaults."""


def add_to(commands: Commands) -> None:
    """Add the command with its actions."""
    actions = commands.add_parser("experts", help="record, complete or check expert files").add_subparsers(
        required=True, metavar="ACTION"
    )
    record = actions.add_parser("record", help="play an environment's own expert, and write its trajectories")
    add_environment(record)
    record.add_argument("--split", default="train", help="split of the tasks (default train)")
    record.add_argument("--first", type=at_least(0), default=0, help="index of the first task (default 0)")
    record.add_argument("-n", type=at_least(1), required=True, help="number of trajectories")
    record.add_argument("--out", type=Path, required=True, metavar="FILE", help="expert file to write")
    record.set_defaults(run=_record)

    complete = actions.add_parser(
        "complete", help="play the trajectories of a file, and fill in what it leaves open and the environment gives"
    )
    complete.add_argument("file", type=Path, help="expert file")
    add_environment(complete)
    for key, text in OPTIONS.items():
        complete.add_argument(f"--{key.replace('_', '-')}", metavar="VALUE", help=text)
    complete.add_argument("--out", type=Path, required=True, metavar="FILE", help="expert file to write")
    complete.set_defaults(run=_complete)

    check = actions.add_parser("check", help="check an expert file line by line")
    check.add_argument("file", type=Path, help="expert file")
    check.set_defaults(run=_check)


def _record(args: argparse.Namespace) -> None:
    from verl_ee.envs import Expert, make
    from verl_ee.experience.branching.session import EnvironmentSession
    from verl_ee.experience.collecting.completion import complete_here
    from verl_ee.experience.expert_files import write_experts
    from verl_ee.experience.progress import progress_bar

    env, environment = make_environment(args), environment_of(args)
    if not isinstance(env.unwrapped, Expert):
        raise EnvError(f"{args.env} has no expert (no expert_trajectory method). Bring an expert file of your own.")
    tasks = tasks_from(tasks_of(env, args.split, "recording"), args.split, args.first, args.n)
    session = EnvironmentSession(lambda: make(environment.id, environment.kwargs))
    with progress_bar(len(tasks), "record", "trajectory", items=tasks) as bar:
        recorded = (_under(environment.id, env.unwrapped.expert_trajectory(task)) for task in bar)
        whole = (complete_here(trajectory, index, session) for index, trajectory in enumerate(recorded))
        count = write_experts(args.out, whole)
    session.discard()
    print(f"{count} trajectories in {args.out}")


def _under(env_id: str, trajectory: ExpertTrajectory) -> ExpertTrajectory:
    """Return a trajectory under the id by which the environment was made: an expert may not know its module."""
    from dataclasses import replace

    from verl_ee.envs import without_module

    if without_module(trajectory.environment) != without_module(env_id):
        raise EnvError(
            f"The expert of {env_id} returns a trajectory of {trajectory.environment!r}. Let it name its environment."
        )
    return replace(trajectory, environment=env_id)


def _complete(args: argparse.Namespace) -> None:
    from verl_ee.config import collect_config
    from verl_ee.experience.branching.workers import connect_ray
    from verl_ee.experience.collecting.completed_experts import completed_line
    from verl_ee.experience.collecting.completion import complete
    from verl_ee.experience.expert_files import load_experts, write_experts

    environment = environment_of(args)
    config = collect_config({key: getattr(args, key) for key in OPTIONS if getattr(args, key) is not None})
    experts = load_experts(args.file, environment.id, environment.kwargs)
    connect_ray()
    completion = complete(experts.trajectories, environment, config)
    print(completed_line(completion))
    print(f"{write_experts(args.out, completion.trajectories)} trajectories in {args.out}")


def _check(args: argparse.Namespace) -> None:
    from verl_ee.experience.expert_files import load_experts

    trajectories = load_experts(args.file).trajectories
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    solved = sum(trajectory.success for trajectory in trajectories)
    print(f"{len(trajectories)} trajectories, {steps} steps, {solved} solved")
