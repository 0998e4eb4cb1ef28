"""Checks of a job's expert file: against the environment, and against data that the job finds or is given."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from verl_ee.config import CollectConfig, EarlyExperienceConfig, Objective, built, sets_of
from verl_ee.config.base import ROOT
from verl_ee.envs import make
from verl_ee.errors import ConfigError
from verl_ee.experience.collecting.collection_folder import CollectionFolder
from verl_ee.experience.collecting.completed_experts import read_record
from verl_ee.experience.expert_files import ExpertFile, load_experts
from verl_ee.experience.provenance import PLAYED_KEYS, SOURCE_KEYS, check_same_source, provenance_of, source_of
from verl_ee.experience.store import read_provenance
from verl_ee.objectives.reflection.rationales import RATIONALES_FILE
from verl_ee.objectives.summaries import SUMMARIES_FILE
from verl_ee.run.folder import RunFolder

OTHER_EXPERTS = (
    f"Data of other experts cannot be used, whatever {ROOT}.resume is: name the expert file, filter and environment "
    "that they were made with, or choose another trainer.default_local_dir."
)


def check_experts(config: EarlyExperienceConfig) -> ExpertFile:
    """Load the expert file and compare it with the environment of the job."""
    make(config.environment.id, config.environment.kwargs).close()
    return experts_of(config)


def experts_of(config: EarlyExperienceConfig) -> ExpertFile:
    """Load the expert trajectories that a job uses, as their file has them."""
    environment = config.environment
    return load_experts(config.experts, environment.id, environment.kwargs, config.max_experts, config.experts_filter)


def check_stores(config: EarlyExperienceConfig, experts: ExpertFile, keys: Collection[str] = SOURCE_KEYS) -> None:
    """Refuse a given store that was collected from other expert trajectories, or in another environment.

    Args:
        config: the job's keys under `early_experience`.
        experts: the experts of the job.
        keys: `PLAYED_KEYS` once the experts are complete.

    Raises:
        ConfigError: naming the store and the difference.
    """
    expected = provenance_of(config.environment, CollectConfig(), experts)
    for name, path in config.stores.items():
        check_same_source(
            read_provenance(Path(path).expanduser()),
            expected,
            f"{ROOT}.stores.{name}={path!r}",
            ConfigError,
            "Use the expert file and environment of the store, or collect again.",
            keys,
        )


def check_own_data(
    folder: RunFolder, config: EarlyExperienceConfig, experts: ExpertFile, given: Collection[Objective] = ()
) -> None:
    """Refuse to go on with branches, rationales or summaries that the run made from other experts.

    Args:
        folder: folder of the run.
        config: the job's keys under `early_experience`.
        experts: the experts of the job, as their file has them or completed.
        given: objectives that `examples` has rows of.

    Raises:
        ConfigError: naming the data and the difference.
        StoreError: if data cannot be read.
    """
    expected = source_of(config.environment, experts)
    for name in sets_of(config, given):
        stored = None if name in config.stores else CollectionFolder(folder.store(name)).read_provenance()
        if stored is not None:
            check_same_source(stored, expected, str(folder.store(name)), ConfigError, OTHER_EXPERTS)
    record = read_record(folder.files)
    if record is not None:
        for path in _texts(folder, config, given):
            if path.exists() or path.with_suffix(".parts").exists():
                check_same_source(record.source, expected, str(path), ConfigError, OTHER_EXPERTS)


def check_played(folder: RunFolder, config: EarlyExperienceConfig, experts: ExpertFile, names: Collection[str]) -> None:
    """Refuse branches that were collected when other trajectories could be played.

    Args:
        folder: folder of the run.
        config: the job's keys under `early_experience`.
        experts: the completed experts.
        names: the sets that the job reads.

    Raises:
        ConfigError: naming the store and the difference.
    """
    check_stores(config, experts, PLAYED_KEYS)
    expected = provenance_of(config.environment, CollectConfig(), experts)
    for name in names:
        stored = None if name in config.stores else CollectionFolder(folder.store(name)).read_provenance()
        if stored is not None:
            check_same_source(stored, expected, str(folder.store(name)), ConfigError, OTHER_EXPERTS, PLAYED_KEYS)


def _texts(folder: RunFolder, config: EarlyExperienceConfig, given: Collection[Objective]) -> Iterator[Path]:
    """Yield the paths of the texts that a job reads, written or not."""
    objectives = built(config, given)
    if "reflection" in objectives:
        yield folder.files / RATIONALES_FILE
    if "world_model" in objectives and config.world_model.target == "summary":
        yield folder.files / SUMMARIES_FILE
