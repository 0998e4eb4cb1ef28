"""The rows that a run learns from, read from the folder of a run, or from files that are named one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ee.config import (
    CollectConfig,
    EarlyExperienceConfig,
    EnvironmentConfig,
    built,
    check_expert_keys,
    needs_experts,
    parse,
)
from verl_ee.config.base import ROOT
from verl_ee.config.group import FOLDER
from verl_ee.config.models import Objective
from verl_ee.errors import ConfigError, StageError, StoreError, not_yaml
from verl_ee.experience.collecting.completed_experts import RECORD, kept_experts, read_record
from verl_ee.experience.collecting.completion import open_line
from verl_ee.experience.expert_files import ExpertFile, load_experts
from verl_ee.experience.progress import plugin_logger
from verl_ee.experience.provenance import DEFAULTS, PLAYED_KEYS, check_same_source, first_difference, provenance_of
from verl_ee.experience.store import read_provenance
from verl_ee.objectives.files.row_files import STEMS, read_rows
from verl_ee.objectives.reflection.rationales import read_rationales
from verl_ee.objectives.rows import Row
from verl_ee.objectives.stage_data import StageRows
from verl_ee.prompts import prompt_format
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import RunState

logger = plugin_logger(__name__)

BEFORE_KEYS = {
    "experts_filter": "all",
    "prompt": {"system": "You act in a text world. Answer with one action.", "instruction": ""},
}
"""Settings of a run of version 0.2 or before, which had no keys for them."""
OTHER_RATIONALES = "Name the expert file that the rationales were written for."


def rows_of(config: EarlyExperienceConfig, texts: Path) -> dict[Objective, Iterable[Row]]:
    """Return what the stages of a job learn, by objective; a job encodes these rows and leaves out those too long.

    Args:
        config: config of the job, whose `stores` name every set of branches that is read.
        texts: folder of the rationales and the summaries.

    Raises:
        ConfigError: if imitation learned tokens of the job's agent loops, or no store has the branches.
        ExpertFileError: if the expert file cannot be read.
        StoreError: if a folder cannot be read, or was made from other trajectories.
    """
    if config.demonstrations is not None:
        raise ConfigError(
            f"{ROOT}.demonstrations={config.demonstrations!r}: imitation learned what the job's agent loops made of "
            "it, token by token, which has no form as messages. Add demonstrations=null to export the expert file."
        )
    environment = config.environment
    given_rows = read_rows(config.examples)
    check_expert_keys(config, list(given_rows))
    stores = {name: Path(path).expanduser() for name, path in config.stores.items()}
    experts = ExpertFile(Path(), "", ())
    if needs_experts(config, list(given_rows)):
        experts = _experts(config, [texts, *stores.values()])
    objectives = built(config, list(given_rows))
    if "world_model" in objectives:
        _check_store(stores, config.world_model.collect, experts, environment)
    if "reflection" in objectives:
        _check_rationales(texts, experts, environment)
    rows = StageRows(config, experts.trajectories, prompt_format(config.prompt), stores, texts, given_rows)
    return {objective: rows.rows(objective) for objective in STEMS if objective in built(config)}


def _experts(config: EarlyExperienceConfig, folders: Sequence[Path]) -> ExpertFile:
    """Return the experts as a job has them: completed, if a folder has them so."""
    environment = config.environment
    experts = load_experts(
        config.experts, environment.id, environment.kwargs, config.max_experts, config.experts_filter
    )
    if experts.filtered_line:
        logger.warning(experts.filtered_line)
    experts = kept_experts(folders, experts, environment)
    if open_parts := open_line(experts.trajectories):
        logger.warning(
            f"{config.experts} leaves open {open_parts}. Where {environment.id} gives it, a job completes it, and its "
            "prompts differ from these: export a run, or complete the file with `verl-ee experts complete`."
        )
    return experts


def config_of_run(folder: RunFolder, settings: Sequence[str]) -> EarlyExperienceConfig:
    """Return the config of a run, as its own folder keeps it; the stores of the run are named in it.

    Args:
        folder: folder of the run.
        settings: changes, `key=value` as behind `early_experience.` on the command line of a job.

    Raises:
        ConfigError: if a setting cannot be read, or the config that results is wrong.
        StageError: if no run has begun there.
    """
    state = RunState.read(folder.state_path)
    if state is None:
        raise StageError(
            f"{folder.state_path} does not say what a run was set to. Name the trainer.default_local_dir of a run, or "
            "files with --env and --experts."
        )
    kept = OmegaConf.create({ROOT: BEFORE_KEYS})
    for key, value in state.identity.items():
        if key.startswith(f"{ROOT}."):
            OmegaConf.update(kept, key, value)
    config = _config(kept[ROOT], settings)
    own_stores = {name: str(folder.store(name)) for name in config.collect}
    return config.model_copy(update={"stores": own_stores | config.stores})


def config_of_files(
    environment: EnvironmentConfig,
    experts: Path,
    store: Path | None,
    reflections: Path | None,
    settings: Sequence[str],
) -> EarlyExperienceConfig:
    """Return the config of the shipped method that learns from the given files.

    Args:
        environment: environment that the experts were recorded in.
        experts: the expert file.
        store: folder of branches, for the world model.
        reflections: folder of rationales.
        settings: changes, `key=value` as behind `early_experience.` on the command line of a job.

    Raises:
        ConfigError: if a setting cannot be read, or the config that results is wrong.
    """
    if store is not None:
        method = "iwm" if reflections is None else "iwm_sr"
    else:
        method = "imitation" if reflections is None else "sr"
    files = OmegaConf.create({"environment": environment.model_dump(), "experts": str(experts)})
    if store is not None:
        files["stores"] = {"world_model": str(store)}
    shipped = OmegaConf.load(FOLDER / f"{method}.yaml")
    return _config(cast(DictConfig, OmegaConf.merge(shipped, files)), settings)


def _config(keys: DictConfig, settings: Sequence[str]) -> EarlyExperienceConfig:
    """Return the typed config of some keys, changed by settings of the form `key=value`."""
    merged = OmegaConf.merge(keys, *(_setting(item) for item in settings))
    # A template of the world model may hold ${...} of its own.
    return parse(cast(Mapping[str, object], OmegaConf.to_container(merged, resolve=False)))


def _setting(item: str) -> DictConfig:
    key, equals, _ = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"{item!r}: expected KEY=VALUE, for instance world_model.target=difference.")
    try:
        return OmegaConf.from_dotlist([item.removeprefix(f"{ROOT}.")])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise not_yaml(repr(item), error) from None


def _check_store(stores: dict[str, Path], name: str, experts: ExpertFile, environment: EnvironmentConfig) -> None:
    """Refuse a store that is not named, or was collected from other trajectories."""
    if name not in stores:
        raise ConfigError(f"The world model reads the branches {name!r}, and no store has them. Add --store FOLDER.")
    expected = provenance_of(environment, CollectConfig(), experts)
    fix = "Name the expert file and environment of the store."
    check_same_source(read_provenance(stores[name]), expected, str(stores[name]), StoreError, fix, PLAYED_KEYS)


def _check_rationales(texts: Path, experts: ExpertFile, environment: EnvironmentConfig) -> None:
    """Refuse rationales of other trajectories, or of states that the expert file does not have."""
    expected = provenance_of(environment, CollectConfig(), experts)
    record = read_record(texts)
    if record is not None:
        stored = record.source | {"unplayable": ",".join(map(str, record.unplayable))}
        check_same_source(stored, expected, str(texts), StoreError, OTHER_RATIONALES, PLAYED_KEYS)
    elif differing := first_difference(expected | DEFAULTS, expected):
        raise StoreError(
            f"{texts} has no {RECORD}, so its rationales are taken to be of version 0.2 or before, which used every "
            f"trajectory of a file; here {differing.key} is {differing.expected}. "
            f"{differing.fix('Have them written again.')} If a later version wrote them, bring the {RECORD} that lay "
            "beside them."
        )
    for ref in (rationale.ref for rationale in read_rationales(texts)):
        if ref.trajectory >= len(experts.trajectories) or ref.step >= len(experts.trajectories[ref.trajectory].steps):
            raise StoreError(
                f"{texts}: trajectory {ref.trajectory}, step {ref.step} is not in the expert file. {OTHER_RATIONALES}"
            )
