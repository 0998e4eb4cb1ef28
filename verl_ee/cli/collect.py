"""`verl-ee collect`: branch at every state of an expert file, without a job."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_ee.cli.options import Commands, RenamedOption, add_environment, add_experts_filter, environment_of
from verl_ee.errors import ConfigError

OPTIONS = {
    "alternatives": "admissible (K of the listed actions) or exhaustive (all)",
    "k": "number of alternatives per state",
    "withhold_expert_tool": "leave out alternatives that use the expert's tool: true or false",
    "seed": "seed of the choice of alternatives",
    "include_expert_transition": "record the outcome of the expert's own action too: true or false",
    "restore": "method to restore a state: auto, snapshot, fork or replay",
    "workers": "number of processes that step environments",
    "step_timeout": "seconds that a step may take",
    "start_timeout": "seconds that making or resetting the environment may take",
    "max_mismatch": "share of states that may be lost",
    "max_failed": "share of actions that may fail",
    "min_filled": "share of the possible alternatives that there have to be",
    "cache": "folder of executed transitions that several collections share",
}
"""Keys of `early_experience.collect` that are options of the command, with the same defaults."""
RENAMED = {"--way": "--restore", "--facts": "--cache"}
"""Options of version 0.1."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "collect", help="branch at every state of an expert file; a killed collection goes on where it was"
    )
    add_environment(parser)
    parser.add_argument("--experts", type=Path, required=True, metavar="FILE", help="expert file")
    add_experts_filter(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the transition store")
    for key, text in OPTIONS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="VALUE", help=text)
    for old, new in RENAMED.items():
        parser.add_argument(old, action=RenamedOption, const=new)
    parser.add_argument("--dry-run", action="store_true", help="predict environment steps, tokens, seconds and bytes")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="price table (YAML), to show what it costs")
    parser.set_defaults(run=_collect)


def _collect(args: argparse.Namespace) -> None:
    from verl_ee.config import collect_config
    from verl_ee.experience.branching.environment_check import unsaid_line
    from verl_ee.experience.branching.workers import connect_ray
    from verl_ee.experience.collecting.collection import Collection
    from verl_ee.experience.collecting.collection_folder import CollectionFolder
    from verl_ee.experience.collecting.completed_experts import completed_experts
    from verl_ee.experience.collecting.completion import open_line
    from verl_ee.experience.collecting.prediction import predict
    from verl_ee.experience.cost import read_prices
    from verl_ee.experience.expert_files import load_experts
    from verl_ee.experience.progress import plugin_logger
    from verl_ee.experience.proposers import LISTED
    from verl_ee.experience.provenance import provenance_of, source_of
    from verl_ee.report.collecting import collected_text, prediction_text

    config = collect_config({key: getattr(args, key) for key in OPTIONS if getattr(args, key) is not None})
    if config.alternatives not in LISTED:
        raise ConfigError(
            f"--alternatives {config.alternatives}: a policy proposes in a job only, where its servers are. "
            f"Use {' or '.join(LISTED)}, or collect in the job."
        )
    environment = environment_of(args)
    prices = read_prices(args.prices) if args.prices else None
    experts = load_experts(args.experts, environment.id, environment.kwargs, None, args.experts_filter)
    if experts.filtered_line:
        print(experts.filtered_line)
    connect_ray()
    if args.dry_run:
        prediction = predict(args.out, experts.trajectories, environment, config)
        print(prediction_text(prediction, prices))
        if open_parts := open_line(experts.trajectories):
            print(f"not counted: the plays that complete what the expert file leaves open ({open_parts})")
        return
    CollectionFolder(args.out).check_source(source_of(environment, experts), config.key("cache"))
    experts = completed_experts(args.out, experts, environment, config)
    provenance = provenance_of(environment, config, experts)
    collection = Collection(args.out, experts.trajectories, environment, config, provenance)
    if collection.closed:
        print(f"{args.out} has been collected already. Look at it with `verl-ee inspect {args.out}`.")
        return
    if unsaid := unsaid_line(experts.trajectories, environment, config):
        plugin_logger(__name__).warning(unsaid)
    print(collected_text(collection.run(), prices))
    print(f"store: {args.out}")
