"""The process group of the training workers."""

from __future__ import annotations

import functools
from types import ModuleType

from verl_ee.trainer.import_hooks import after_import


def use_plain_gloo() -> None:
    """Make `gloo` the default backend of verl's process group."""

    def replace(module: ModuleType) -> None:
        stock = module.initialize_global_process_group_ray
        module.initialize_global_process_group_ray = functools.partial(stock, backend="gloo")  # type: ignore[attr-defined]

    after_import("verl.utils.distributed", replace)
