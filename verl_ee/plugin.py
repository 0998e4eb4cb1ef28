"""The `verl_ee` plugin: verl imports this module in every process.

It stays light and changes nothing that a job without the flag could notice: the config group is only visible once
somebody writes `+early_experience=...`, and the trainer is registered only in a job that has the flag, which marks
its processes with the environment variable `FLAG`. Such a job also computes log-probabilities in chunks on GPUs without
the package flash-attn.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import ModuleType

import verl_ee.trainer.cpu
from verl_ee.trainer.import_hooks import after_import

FLAG = "VERL_EE"


def _register_trainer(_: ModuleType) -> None:
    import verl_ee.trainer.rollout.agent_loop
    import verl_ee.trainer.trainer_modes  # noqa: F401


def _register_configs(_: ModuleType) -> None:
    from verl_ee.config.group import store

    store()


def _replace_row_loop(module: ModuleType) -> None:
    from verl_ee.trainer.actor.log_probs import replace_row_loop

    replace_row_loop(module)


after_import("hydra", _register_configs)
if os.environ.get(FLAG) == "1":
    after_import("verl.trainer.ppo.v1", _register_trainer)
    if not verl_ee.trainer.cpu.active() and find_spec("flash_attn") is None:
        after_import("verl.utils.torch_functional", _replace_row_loop)
