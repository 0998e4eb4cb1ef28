"""`verl-ee check`: the installed versions, what is registered, and every name of verl that verl_ee relies on."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from verl_ee.cli.options import Commands

if TYPE_CHECKING:
    from verl_ee.trainer.upstream import UpstreamName


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("check", help="show versions, what is registered, and every name of verl relied on")
    parser.add_argument("--gpus", action="store_true", help="print the number of GPUs that torch can use, and no more")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    _silence_imports()
    if arguments.gpus:
        from verl_ee.trainer.checks.accelerator import usable_gpus

        print(usable_gpus())
        return 0
    import hydra  # noqa: F401

    # verl hides a plugin that fails to load; imported by name, it shows why.
    import verl_ee.plugin  # noqa: F401
    from verl_ee.trainer import upstream

    _print_table(upstream.versions(), 16)
    registered = upstream.registered()
    _print_table(registered, 28)
    problems = {str(name): upstream.problem_with(name) for name in _relied_on()}
    for name, problem in problems.items():
        print(f"{'differs' if problem else 'ok':8} {name}{'  ' + problem if problem else ''}")
    conflicts = upstream.conflicts()
    for package in conflicts:
        print(f"conflict {package} breaks transformers next to a CPU torch. Run: pip uninstall -y {package}")
    machine = upstream.machine_problems()
    for problem in machine:
        print(f"machine  {problem}")
    missing = any("missing" in names for names in registered.values())
    count = sum(1 for problem in problems.values() if problem) + len(conflicts) + len(machine) + missing
    print(f"\n{f'{count} problems' if count else 'ok'}")
    return int(count > 0)


def _silence_imports() -> None:
    """Keep the packages that are imported from filling the screen."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"


def _relied_on() -> Sequence[UpstreamName]:
    """Return the names that this installation needs."""
    from verl_ee.trainer import upstream

    names = list(upstream.NAMES)
    if upstream.active():
        names += upstream.ROLLOUT_NAMES
    if find_spec("vllm"):
        names += upstream.VLLM_NAMES
    if find_spec("megatron"):
        names += upstream.MEGATRON_NAMES
    return names


def _print_table(values: dict[str, str], width: int) -> None:
    for name, value in values.items():
        print(f"{name:{width}} {value}")
    print()
