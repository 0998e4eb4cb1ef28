"""The command `verl-ee`: look at an installation and at environments, record experts, collect, exchange, report."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verl_ee.errors import ConfigError, EarlyExperienceError, EnvError, did_you_mean, not_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 1 with one message on standard error; 130 if interrupted."""
    args = _parser().parse_args(argv)
    try:
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
        print("Interrupted. What was written is kept; the same command goes on from there.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verl-ee", description="Early experience for verl.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check_environment = commands.add_parser(
        "check", help="versions, what is registered, and every upstream name relied on"
    )
    check_environment.set_defaults(run=_check)

    envs = commands.add_parser("envs", help="environments: what they can do, and task files for verl")
    envs.set_defaults(run=_envs, id=None)
    actions = envs.add_subparsers(metavar="ACTION")
    probe = actions.add_parser("check", help="play an expert twice and try every way back to a state")
    probe.add_argument("env", metavar="ID", help="Gymnasium id, or module:id of your own")
    _arguments(probe)
    probe.add_argument("--experts", type=Path, help="expert file whose first trajectory is played")
    probe.set_defaults(run=_probe)
    tasks = actions.add_parser(
        "tasks", help="write tasks of a split as a Parquet file for data.train_files or val_files"
    )
    _environment(tasks)
    tasks.add_argument("--split", action="append", required=True, metavar="SPLIT[:FIRST]", help="may be given again")
    tasks.add_argument("-n", type=_at_least(1), required=True, help="tasks of each split")
    tasks.add_argument("--out", type=Path, required=True)
    tasks.set_defaults(run=_tasks)

    experts = commands.add_parser("experts", help="expert files")
    actions = experts.add_subparsers(required=True, metavar="ACTION")
    record = actions.add_parser("record", help="play an environment's own expert and write what it did")
    _environment(record)
    record.add_argument("--split", default="train")
    record.add_argument("--first", type=_at_least(0), default=0, help="index of the first task (default 0)")
    record.add_argument("-n", type=_at_least(1), required=True, help="trajectories")
    record.add_argument("--out", type=Path, required=True)
    record.set_defaults(run=_record)
    read = actions.add_parser("check", help="check an expert file line by line")
    read.add_argument("file", type=Path)
    read.set_defaults(run=_read)

    collect = commands.add_parser("collect", help="branch at every state of an expert file; a killed run goes on")
    _environment(collect)
    collect.add_argument("--experts", type=Path, required=True, help="expert file")
    collect.add_argument("--out", type=Path, required=True, help="folder of the store")
    for option, what in _COLLECT.items():
        collect.add_argument(f"--{option.replace('_', '-')}", metavar="VALUE", help=what)
    collect.add_argument("--dry-run", action="store_true", help="predict environment steps, tokens, seconds and bytes")
    collect.add_argument("--prices", type=Path, help="price table (YAML): what it comes to")
    collect.set_defaults(run=_collect)

    inspect = commands.add_parser("inspect", help="what a transition store holds, or what became of rationales")
    inspect.add_argument("folder", type=Path, help="folder of a store, or <run>/early_experience for rationales")
    inspect.add_argument("--samples", type=_at_least(0), default=0, metavar="N", help="show N branches in full")
    inspect.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    inspect.set_defaults(run=_inspect)

    export = commands.add_parser("export", help="write what a run learns from in a form that others read")
    export.add_argument("--run", type=Path, dest="folder", help="trainer.default_local_dir of a run")
    export.add_argument("--env", metavar="ID", help="without a run: Gymnasium id")
    _arguments(export)
    export.add_argument("--experts", type=Path, help="without a run: expert file")
    export.add_argument("--store", type=Path, help="without a run: folder of branches, for the world model")
    export.add_argument("--reflections", type=Path, help="without a run: folder of rationales, for reflection")
    export.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of early_experience, as world_model.target=difference"
    )
    export.add_argument("--format", choices=("messages", "verl-sft"), required=True, help="JSON lines, or Parquet")
    export.add_argument("--out", type=Path, required=True, help="folder")
    export.set_defaults(run=_export)

    imports = commands.add_parser("import", help="read examples, or experts, that others wrote")
    imports.add_argument("path", type=Path, nargs="+", help="file; for messages also a folder with the three files")
    imports.add_argument("--format", choices=("messages", "agentgym"), required=True)
    imports.add_argument("--out", type=Path, required=True, help="messages: rows file; agentgym: expert file")
    imports.add_argument("--turns", choices=("last", "all"), help="messages: what is learned of several responses")
    imports.add_argument("--env", metavar="ID", help="agentgym: Gymnasium id")
    _arguments(imports)
    imports.add_argument("--goal", metavar="REGEX", help="agentgym: finds the instruction in the first observation")
    imports.add_argument("--success", action="store_true", help="agentgym: items that do not say it are solved")
    imports.set_defaults(run=_import)

    report = commands.add_parser("report", help="table and plot of a run, or of several seeds together")
    report.add_argument("folder", type=Path, nargs="+", help="trainer.default_local_dir of a run")
    report.set_defaults(run=_report)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return number


def _environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", required=True, metavar="ID", help="Gymnasium id")
    _arguments(parser)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kwarg", action="append", default=[], metavar="KEY=VALUE", help="argument of the environment")


def _kwargs(args: argparse.Namespace) -> dict[str, Any]:
    import yaml

    kwargs = {}
    for item in args.kwarg:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--kwarg {item!r}: expected KEY=VALUE.")
        try:
            kwargs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise not_yaml(f"--kwarg {item!r}", error) from None
    return kwargs


def _make(args: argparse.Namespace) -> Any:
    from verl_ee.envs import make

    return make(args.env, _kwargs(args))


_COLLECT = {
    "alternatives": "admissible (K of the listed actions) or exhaustive (all)",
    "k": "alternatives per state",
    "withhold_expert_tool": "leave out alternatives that use the expert's tool: true or false",
    "seed": "of the choice of alternatives",
    "include_expert_transition": "record the expert's own outcome too: true or false",
    "way": "auto, snapshot, fork or replay",
    "workers": "processes that step environments",
    "step_timeout": "seconds that a step may take",
    "start_timeout": "seconds that making or resetting the environment may take",
    "max_mismatch": "share of states that may be lost",
    "max_failed": "share of actions that may fail",
    "facts": "folder of executed transitions that several collections share",
}
"""Options of `collect`: keys of early_experience.collect, same names, same defaults."""


def _tasks_of(env: Any, split: str, needed: str) -> Sequence[str]:
    from verl_ee.envs import Tasks

    unwrapped = env.unwrapped
    if not isinstance(unwrapped, Tasks):
        raise EnvError(f"{env.spec.id} lists no tasks, which {needed} needs. Give it tasks(split) and splits.")
    if split not in unwrapped.splits:
        raise EnvError(f"{env.spec.id} has no split {split!r}. {did_you_mean(split, unwrapped.splits)}")
    return unwrapped.tasks(split)


def _chosen(tasks: Sequence[str], split: str, first: int, count: int) -> Sequence[str]:
    """Return the tasks from `first` on; fewer than `count` where the split ends, but at least one."""
    chosen = tasks[first : first + count]
    if not chosen:
        raise ConfigError(f"Split {split!r} has {len(tasks)} tasks, so there is none from number {first} on.")
    return chosen


def _check(_: argparse.Namespace) -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    import hydra  # noqa: F401

    # verl hides a plugin that fails to load; imported by name, it shows why.
    import verl_ee.plugin  # noqa: F401
    from verl_ee.trainer import upstream

    for package, version in upstream.versions().items():
        print(f"{package:16} {version}")
    print()
    for what, where in upstream.registered().items():
        print(f"{what:28} {where}")
    print()
    names = upstream.NAMES + (upstream.ROLLOUT_NAMES if upstream.active() else ())
    names += upstream.VLLM_NAMES if find_spec("vllm") else ()
    names += upstream.MEGATRON_NAMES if find_spec("megatron") else ()
    problems = {str(name): upstream.problem_with(name) for name in names}
    for name, problem in problems.items():
        print(f"{'differs' if problem else 'ok':8} {name}{'  ' + problem if problem else ''}")
    broken = upstream.conflicts()
    for package in broken:
        print(f"conflict {package} breaks transformers next to a CPU torch. Run: pip uninstall -y {package}")
    unloaded = any("missing" in where for where in upstream.registered().values())
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
    from verl_ee.experience.task_files import write_tasks

    env = _make(args)
    chosen = []
    for item in args.split:
        split, _, first = item.partition(":")
        if first and not first.isdigit():
            raise ConfigError(f"--split {item!r}: expected SPLIT or SPLIT:FIRST, FIRST a number.")
        tasks = _chosen(_tasks_of(env, split, "a task file"), split, int(first or 0), args.n)
        chosen += [(split, task) for task in tasks]
    print(f"{write_tasks(args.out, env, chosen)} tasks in {args.out}")


def _record(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from verl_ee.envs import Expert
    from verl_ee.experience.expert_files import write_experts

    env = _make(args)
    if not isinstance(env.unwrapped, Expert):
        raise EnvError(f"{args.env} has no expert (no expert_trajectory method). Bring an expert file of your own.")
    tasks = _chosen(_tasks_of(env, args.split, "recording"), args.split, args.first, args.n)
    with tqdm(tasks, desc="record", unit="trajectory") as bar:
        count = write_experts(args.out, (env.unwrapped.expert_trajectory(task) for task in bar))
    print(f"{count} trajectories in {args.out}")


def _read(args: argparse.Namespace) -> None:
    from verl_ee.experience.expert_files import load_experts

    trajectories = load_experts(args.file).trajectories
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    solved = sum(trajectory.success for trajectory in trajectories)
    print(f"{len(trajectories)} trajectories, {steps} steps, {solved} solved")


def _probe(args: argparse.Namespace) -> int:
    from verl_ee.config import EnvironmentConfig
    from verl_ee.envs import Expert
    from verl_ee.experience.branching.environment_check import check_environment
    from verl_ee.experience.expert_files import load_experts
    from verl_ee.report.collecting import check_text

    env, kwargs = _make(args), _kwargs(args)
    if args.experts:
        trajectory = load_experts(args.experts, args.env, kwargs, limit=1).trajectories[0]
    elif isinstance(env.unwrapped, Expert):
        splits = getattr(env.unwrapped, "splits", ("train",))
        trajectory = env.unwrapped.expert_trajectory(_tasks_of(env, splits[0], "playing its expert")[0])
    else:
        raise EnvError(f"{args.env} has no expert of its own. Name an expert file with --experts RATIONALES_FILE.")
    found = check_environment(EnvironmentConfig(id=args.env, kwargs=kwargs), trajectory)
    print(check_text(env, trajectory, found))
    return int(not found.good)


def _collect(args: argparse.Namespace) -> None:
    from verl_ee.config import EnvironmentConfig, collect_config
    from verl_ee.experience.branching.workers import connect_ray
    from verl_ee.experience.collecting.collection import Collection
    from verl_ee.experience.collecting.prediction import predict
    from verl_ee.experience.cost import read_prices
    from verl_ee.experience.expert_files import load_experts
    from verl_ee.experience.proposers import LISTED
    from verl_ee.experience.provenance import provenance_of
    from verl_ee.report.collecting import collected_text, prediction_text

    given = {option: getattr(args, option) for option in _COLLECT if getattr(args, option) is not None}
    config = collect_config(given)
    if config.alternatives not in LISTED:
        raise ConfigError(
            f"--alternatives {config.alternatives}: a policy proposes in a job only, where its servers are. "
            f"Use {' or '.join(LISTED)}, or collect in the job."
        )
    environment = EnvironmentConfig(id=args.env, kwargs=_kwargs(args))
    prices = read_prices(args.prices) if args.prices else None
    experts = load_experts(args.experts, environment.id, environment.kwargs)
    connect_ray()
    if args.dry_run:
        found = predict(args.out, experts.trajectories, environment, config)
        print(prediction_text(found, prices))
        return
    provenance = provenance_of(environment, config, experts.sha256, len(experts.trajectories))
    collection = Collection(args.out, experts.trajectories, environment, config, provenance)
    if collection.closed:
        print(f"{args.out} has been collected already. Look at it with `verl-ee inspect {args.out}`.")
        return
    print(collected_text(collection.run(), prices))
    print(f"store: {args.out}")


def _inspect(args: argparse.Namespace) -> None:
    from verl_ee.objectives.reflection.rationales import RATIONALES_FILE
    from verl_ee.report import inspect, inspect_rationales

    look = inspect_rationales if (args.folder / RATIONALES_FILE).exists() else inspect
    print(look(args.folder, args.samples, args.seed))


def _export(args: argparse.Namespace) -> None:
    from verl_ee.cli.exported_rows import keys_of_files, keys_of_run, override, rows_of
    from verl_ee.config import EnvironmentConfig, parse
    from verl_ee.objectives.row_files import export_messages, export_parquet

    named = [args.env, args.experts, args.store, args.reflections, *args.kwarg]
    if args.folder is not None:
        if any(item is not None for item in named):
            raise ConfigError("--run names environment and files. Leave the others out; KEY=VALUE changes a setting.")
        keys, own = keys_of_run(args.folder), args.folder / "early_experience"
    elif args.env is None or args.experts is None:
        raise ConfigError("Say what is exported: --run FOLDER of a run, or --env ID and --experts RATIONALES_FILE.")
    else:
        environment = EnvironmentConfig(id=args.env, kwargs=_kwargs(args))
        keys = keys_of_files(environment, args.experts, args.store, args.reflections)
        own = args.reflections or args.store or args.experts.parent
    rows = rows_of(parse(override(keys, args.settings)), own)
    write = export_messages if args.format == "messages" else export_parquet
    for path, count in write(args.out, rows).items():
        print(f"{count} examples in {path}")


def _import(args: argparse.Namespace) -> None:
    from verl_ee.config import EnvironmentConfig
    from verl_ee.experience.agentgym import read_agentgym
    from verl_ee.experience.expert_files import write_experts
    from verl_ee.objectives.row_files import import_messages, write_rows

    if args.format == "messages":
        counts = write_rows(args.out, (row for path in args.path for row in import_messages(path, args.turns)))
        print(f"{', '.join(f'{count} {name}' for name, count in counts.items())} in {args.out}")
        return
    if args.env is None:
        raise ConfigError("--format agentgym needs --env ID: an expert file names the environment it is for.")
    environment = EnvironmentConfig(id=args.env, kwargs=_kwargs(args))
    found = (item for path in args.path for item in read_agentgym(path, environment, args.goal, args.success))
    print(f"{write_experts(args.out, found)} trajectories in {args.out}")


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
