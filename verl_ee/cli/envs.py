"""`verl-ee envs`: the environments and what each can do, a trial of one, and task files for verl."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from verl_ee.cli.options import Commands, add_environment, add_kwargs, at_least, environment_of, make_environment
from verl_ee.cli.tasks import tasks_from, tasks_of
from verl_ee.errors import ConfigError, EnvError

if TYPE_CHECKING:
    import gymnasium

    from verl_ee.envs import ExpertTrajectory


def add_to(commands: Commands) -> None:
    """Add the command with its actions."""
    parser = commands.add_parser("envs", help="list environments and what they can do; try one; write task files")
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(metavar="ACTION")

    check = actions.add_parser("check", help="play an expert twice, and try every method to restore a state")
    check.add_argument("env", metavar="ID", help="Gymnasium id, or module:id of your own")
    add_kwargs(check)
    check.add_argument("--experts", type=Path, metavar="FILE", help="expert file whose first trajectory is played")
    check.set_defaults(run=_check)

    tasks = actions.add_parser(
        "tasks", help="write tasks of a split into a Parquet file for data.train_files or data.val_files"
    )
    add_environment(tasks)
    tasks.add_argument(
        "--split",
        action="append",
        required=True,
        metavar="SPLIT[:FIRST]",
        help="split, and the index of its first task (default 0); may be repeated",
    )
    for key in ("format", "system", "instruction", "template"):
        tasks.add_argument(
            f"--prompt-{key}", metavar="TEXT", help=f"early_experience.prompt.{key} of the job; its default if left out"
        )
    tasks.add_argument("-n", type=at_least(1), required=True, help="number of tasks of each split")
    tasks.add_argument("--out", type=Path, required=True, metavar="FILE", help="task file to write")
    tasks.set_defaults(run=_tasks)


def _list(_: argparse.Namespace) -> None:
    import gymnasium

    from verl_ee.envs import capabilities, make, version_of
    from verl_ee.envs.contract import NAMESPACE

    print(f"{'id':28} {'version':8} can")
    for name in sorted(gymnasium.registry):
        if name.startswith(NAMESPACE):
            print(f"{name:28} {version_of(name):8} {', '.join(sorted(capabilities(make(name))))}")


def _check(args: argparse.Namespace) -> int:
    from verl_ee.experience.branching.environment_check import check_environment
    from verl_ee.report.collecting import check_text

    env, environment = make_environment(args), environment_of(args)
    trajectory = _first_trajectory(args, env)
    check = check_environment(environment, trajectory)
    print(check_text(env, trajectory, check))
    return int(not check.good)


def _first_trajectory(args: argparse.Namespace, env: gymnasium.Env[str, str]) -> ExpertTrajectory:
    """Return the first trajectory of the expert file, or one of the environment's own expert."""
    from verl_ee.envs import Expert
    from verl_ee.experience.expert_files import load_experts

    if args.experts:
        environment = environment_of(args)
        return load_experts(args.experts, environment.id, environment.kwargs, limit=1).trajectories[0]
    if not isinstance(env.unwrapped, Expert):
        raise EnvError(f"{args.env} has no expert of its own. Name an expert file with --experts FILE.")
    splits = getattr(env.unwrapped, "splits", ("train",))
    return env.unwrapped.expert_trajectory(tasks_of(env, splits[0], "playing its expert")[0])


def _tasks(args: argparse.Namespace) -> None:
    from verl_ee.config import PromptConfig
    from verl_ee.experience.task_files import write_tasks
    from verl_ee.prompts import prompt_format

    given = {key: getattr(args, f"prompt_{key}") for key in ("format", "system", "instruction", "template")}
    prompt = PromptConfig.model_validate({key: text for key, text in given.items() if text is not None})
    env = make_environment(args)
    tasks = []
    for item in args.split:
        split, _, first = item.partition(":")
        if first and not first.isdigit():
            raise ConfigError(f"--split {item!r}: expected SPLIT or SPLIT:FIRST, FIRST a number.")
        chosen = tasks_from(tasks_of(env, split, "a task file"), split, int(first or 0), args.n)
        tasks += [(split, task) for task in chosen]
    print(f"{write_tasks(args.out, env, tasks, prompt_format(prompt))} tasks in {args.out}")
