"""What a run learns from, as rows: of the folder of a run, or of files that are named one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from verl_ee.config import CollectConfig, EarlyExperienceConfig, EnvironmentConfig, built
from verl_ee.config.group import FOLDER
from verl_ee.config.models import ROOT, Objective
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import ConfigError, StageError, StoreError, not_yaml
from verl_ee.experience.expert_files import ExpertFile, load_experts
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.store import read_provenance
from verl_ee.objectives.reflection.rationales import Rationale, read_rationales
from verl_ee.objectives.row_files import STEMS, read_rows
from verl_ee.objectives.rows import Row
from verl_ee.objectives.stage_data import StageRows

Keys = dict[str, Any]


def rows_of(config: EarlyExperienceConfig, own: Path) -> dict[Objective, Iterable[Row]]:
    """Return what the stages of a job learn, by objective; a job encodes these rows and leaves out what is too long.

    Args:
        config: of the job.
        own: `early_experience` in the folder of the run: its rationales, its summaries, and its sets of branches
            unless `config.stores` names others.

    Raises:
        ConfigError: if imitation learned what is no text.
        ExpertFileError: if the expert file cannot be read.
        StoreError: if a folder cannot be read, or was made from other trajectories.
    """
    if config.demonstrations is not None:
        raise ConfigError(
            f"{ROOT}.demonstrations={config.demonstrations!r}: imitation learned what the job's agent loops made of "
            "it, token by token, which has no form as messages. Add demonstrations=null to export the expert file."
        )
    environment = config.environment
    experts = load_experts(config.experts, environment.id, environment.kwargs, config.max_experts)
    given = read_rows(config.examples)
    used, name = built(config, list(given)), config.world_model.collect
    store = Path(config.stores[name]).expanduser() if name in config.stores else own / "store" / name
    if "world_model" in used:
        _check_store(store, experts, environment)
    if "reflection" in used:
        _check_places(read_rationales(own), experts.trajectories, own)
    material = StageRows(config, experts.trajectories, {name: store}, own, given)
    return {objective: material.rows(objective) for objective in STEMS if objective in built(config)}


def keys_of_run(folder: Path) -> Keys:
    """Return the settings of a run, as its own folder keeps them.

    Args:
        folder: `trainer.default_local_dir` of the run.

    Raises:
        StageError: if no run has begun there.
    """
    path, keys = folder / ROOT / "state.json", Keys()
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        ours = {key: value for key, value in identity.items() if key.startswith(f"{ROOT}.")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StageError(
            f"{path} does not say what a run was set to. Name the trainer.default_local_dir of a run, or files with "
            "--env and --experts."
        ) from None
    for key, value in ours.items():
        _merge(keys, _nested(key.removeprefix(f"{ROOT}."), value))
    return keys


def keys_of_files(environment: EnvironmentConfig, experts: Path, store: Path | None, reflections: Path | None) -> Keys:
    """Return the settings of the shipped method that learns what is given.

    Args:
        environment: that the experts were recorded in.
        experts: the expert file.
        store: folder of branches, for the world model.
        reflections: folder of rationales.
    """
    methods = {(False, False): "imitation", (True, False): "iwm", (False, True): "sr", (True, True): "iwm_sr"}
    method = methods[store is not None, reflections is not None]
    shipped = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{method}.yaml"))
    stores = {} if store is None else {"world_model": str(store)}
    return cast(Keys, shipped) | {"environment": environment.model_dump(), "experts": str(experts), "stores": stores}


def override(keys: Keys, settings: Sequence[str]) -> Keys:
    """Return settings with some of them changed.

    Args:
        keys: what is changed; left as it is.
        settings: `key=value`, as behind `early_experience.` on the command line of a job, which may stand before it.

    Raises:
        ConfigError: if one is not of this form.
    """
    result = Keys()
    _merge(result, keys)
    for item in settings:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected KEY=VALUE, for instance world_model.target=difference.")
        try:
            given = OmegaConf.from_dotlist([item.removeprefix(f"{ROOT}.")])
        except yaml.YAMLError as error:
            raise not_yaml(repr(item), error) from None
        _merge(result, cast(Keys, OmegaConf.to_container(given)))
    return result


def _nested(key: str, value: Any) -> Keys:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(keys: Keys, other: Mapping[Any, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            inner = keys[key] = dict(keys[key]) if isinstance(keys.get(key), Mapping) else {}
            _merge(inner, value)
        else:
            keys[key] = value


def _check_store(store: Path, experts: ExpertFile, environment: EnvironmentConfig) -> None:
    expected = provenance_of(environment, CollectConfig(), experts.sha256, len(experts.trajectories))
    found = read_provenance(store)
    for key in ("environment", "experts_sha256", "trajectories"):
        if found.get(key) != expected[key]:
            raise StoreError(
                f"{store} was collected with another {key} ({found.get(key)}) than is given ({expected[key]}). "
                "Name the expert file and environment of the store."
            )


def _check_places(items: Iterable[Rationale], trajectories: Sequence[ExpertTrajectory], folder: Path) -> None:
    """Refuse what points to a state that the expert file does not have."""
    for item in items:
        if item.trajectory >= len(trajectories) or item.step >= len(trajectories[item.trajectory].steps):
            raise StoreError(
                f"{folder}: trajectory {item.trajectory}, step {item.step} is not in the expert file. Name the expert "
                "file that the rationales were written for."
            )
