"""Makes `+early_experience=<name>` known to Hydra."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_ee.config.schema import ROOT

FOLDER = Path(__file__).parent / ROOT
TRAINER_MODE = "early_experience"


def names() -> list[str]:
    """Return the values that the flag takes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def compose(name: str) -> DictConfig:
    """Return what the flag value `name` adds to a verl job.

    Besides our keys that is the trainer mode, a Hydra callback that refuses a bad job before Ray starts, and a mark
    in the environment of the job's processes, by which the plugin knows that the flag is on.
    """
    keys = OmegaConf.load(FOLDER / f"{name}.yaml")
    # Not a struct: a mistyped key reaches our own check, whose message lists the keys that exist.
    keys._set_flag("struct", False)
    config = OmegaConf.create(
        {
            "trainer": {"v1": {"trainer_mode": TRAINER_MODE}},
            "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"VERL_EE": "1"}}}},
            "hydra": {"callbacks": {ROOT: {"_target_": "verl_ee.trainer.flag.FlagCallback"}}},
        }
    )
    config[ROOT] = keys
    return config


def store() -> None:
    """Put every flag value into Hydra's config store."""
    from hydra.core.config_store import ConfigStore

    for name in names():
        ConfigStore.instance().store(group=ROOT, name=name, node=compose(name), package="_global_", provider="verl_ee")
