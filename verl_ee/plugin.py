"""The `verl_ee` plugin: verl imports this module in every process.

It stays light and changes nothing that a job without the flag could notice: the config group is only visible once
somebody writes `+early_experience=...`, and the trainer is registered only in a job that has the flag, which marks
its processes with the environment variable `FLAG`.
"""

from __future__ import annotations

import os
from types import ModuleType

import verl_ee.trainer.cpu  # noqa: F401  (registers the CPU platform in a job that asks for it)
from verl_ee.trainer.import_hooks import after_import

FLAG = "VERL_EE"


def _register_trainer(_: ModuleType) -> None:
    import verl_ee.trainer.rollout.agent_loop
    import verl_ee.trainer.trainer_modes  # noqa: F401


def _register_configs(_: ModuleType) -> None:
    from verl_ee.config.group import store

    store()


after_import("hydra", _register_configs)
if os.environ.get(FLAG) == "1":
    after_import("verl.trainer.ppo.v1", _register_trainer)
