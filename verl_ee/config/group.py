"""Makes `+early_experience=<name>` known to Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from verl_ee.config.base import ROOT

FOLDER = Path(__file__).parent / ROOT
TRAINER_MODES = {
    "sync": "early_experience",
    "colocate_async": "early_experience_colocate_async",
    "separate_async": "early_experience_separate_async",
}
"""Trainer mode with the stages in front, for each of verl's; the flag selects the first."""


def names() -> list[str]:
    """Return the values that the flag takes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def flag(keys: DictConfig | None = None) -> DictConfig:
    """Return what makes a verl job one of early experience, with the keys of a method or, for others to add, none.

    Besides our keys that is the trainer mode, a Hydra callback that refuses a bad job before Ray starts, and a mark
    in the environment of the job's processes, by which the plugin knows that the flag is on.
    """
    keys = OmegaConf.create({}) if keys is None else keys
    # Not a struct: a mistyped key reaches our own check, whose message lists the keys that exist.
    keys._set_flag("struct", False)
    config = OmegaConf.create(
        {
            "trainer": {"v1": {"trainer_mode": TRAINER_MODES["sync"]}},
            "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"VERL_EE": "1"}}}},
            "hydra": {"callbacks": {ROOT: {"_target_": "verl_ee.trainer.hydra_callback.FlagCallback"}}},
        }
    )
    config[ROOT] = keys
    return config


def compose(name: str) -> DictConfig:
    """Return what the flag value `name` adds to a verl job."""
    return flag(cast(DictConfig, OmegaConf.load(FOLDER / f"{name}.yaml")))


def store() -> None:
    """Put every flag value into Hydra's config store, and `flag`, on which a method of somebody else's is built."""
    from hydra.core.config_store import ConfigStore

    nodes = {name: compose(name) for name in names()} | {"flag": flag()}
    for name, node in nodes.items():
        ConfigStore.instance().store(group=ROOT, name=name, node=node, package="_global_", provider="verl_ee")
