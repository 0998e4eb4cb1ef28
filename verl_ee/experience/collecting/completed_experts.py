"""The completed experts of a run or of a store, kept in its folder.

<folder>/
    experts.jsonl   the trajectories with all that the environment gives, an ordinary expert file; missing where the
                    expert file leaves nothing open
    experts.json    which expert file they come from, and what the plays took
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.errors import StoreError
from verl_ee.experience.collecting.completion import Completion, complete, open_line
from verl_ee.experience.expert_files import ExpertFile, load_experts, write_experts
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.experience.progress import plugin_logger
from verl_ee.experience.provenance import SOURCE_KEYS, source_of, store_differences

EXPERTS, RECORD = "experts.jsonl", "experts.json"
RECORD_FILE = FileFormat(1, StoreError, "does not say where experts come from", "Delete it to have them played again.")
logger = plugin_logger(__name__)


@dataclass(frozen=True)
class ExpertsRecord:
    """The content of `experts.json`.

    Attributes:
        source: identifies the expert file and the choice from it, as in a provenance.
        sha256: hash of `experts.jsonl`; empty where the expert file leaves nothing open and is used as it is.
        unplayable: indices of the trajectories that are left out because they cannot be played.
        unsuccessful: number of the trajectories that the filter left out.
        played: number of trajectories that were played.
        faults: how often each kind of fault occurred.
        env_steps: environment steps that it took.
        resets: episodes begun.
    """

    source: dict[str, str]
    sha256: str = ""
    unplayable: tuple[int, ...] = ()
    unsuccessful: int = 0
    played: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    env_steps: int = 0
    resets: int = 0


def read_record(folder: Path) -> ExpertsRecord | None:
    """Return which experts the data in a folder were made from, or None if nothing says so.

    Raises:
        StoreError: if the record is broken or of another version.
    """
    path = folder / RECORD
    return read_versioned_json(path, ExpertsRecord, RECORD_FILE) if path.exists() else None


def kept_experts(folders: Iterable[Path], experts: ExpertFile, environment: EnvironmentConfig) -> ExpertFile:
    """Return the completed form of some experts, if a folder has it; else the experts as they are.

    Args:
        folders: where it may be; the first that has it counts.
        experts: the experts as their file has them.
        environment: the environment that they were recorded in.

    Raises:
        ExpertFileError: if a completed file cannot be read.
        StoreError: if a record is broken or of another version.
    """
    if not open_line(experts.trajectories):
        return experts
    found = _found(folders, experts, environment)
    return experts if found is None else found[0]


def completed_experts(
    folder: Path,
    experts: ExpertFile,
    environment: EnvironmentConfig,
    config: CollectConfig,
    begin: Callable[[], None] = lambda: None,
    elsewhere: Iterable[Path] = (),
) -> ExpertFile:
    """Return some experts with all that the environment gives; they are played once, and kept in a folder.

    An expert file that leaves nothing open is not played.

    Args:
        folder: where they are kept; those of another expert file in it are replaced.
        experts: the experts as their file has them.
        environment: the environment that they were recorded in.
        config: how they are played.
        begin: called before they are played.
        elsewhere: other folders that may have them.

    Raises:
        EarlyExperienceError: if they cannot be played, or what is kept cannot be read.
    """
    source = source_of(environment, experts)
    if not open_line(experts.trajectories):
        _write_record(folder, ExpertsRecord(source, unsuccessful=experts.unsuccessful))
        return experts
    found = _found([folder, *elsewhere], experts, environment)
    if found is not None:
        kept, record = found
        if read_record(folder) != record:
            write_experts(folder / EXPERTS, kept.trajectories)
            _write_record(folder, replace(record, sha256=_sha256(folder / EXPERTS)))
        return kept
    begin()
    logger.info(f"complete: the expert file leaves open {open_line(experts.trajectories)}")
    completion = complete(experts.trajectories, environment, config)
    logger.info(f"complete: {completed_line(completion)}")
    write_experts(folder / EXPERTS, completion.trajectories)
    usage = completion.usage
    record = ExpertsRecord(
        source,
        _sha256(folder / EXPERTS),
        completion.unplayable,
        experts.unsuccessful,
        completion.played,
        completion.faults,
        usage.env_steps,
        usage.resets,
    )
    _write_record(folder, record)
    return replace(experts, trajectories=completion.trajectories, unplayable=completion.unplayable)


def completed_line(completion: Completion) -> str:
    """Return what completing took, as a log shows it."""
    faults = ", ".join(f"{count} {kind}" for kind, count in completion.faults.items()) or "none"
    return (
        f"{completion.played} trajectories played in {completion.usage.env_steps} steps, {len(completion.unplayable)} "
        f"cannot be played and are left out (faults: {faults})"
    )


def _found(
    folders: Iterable[Path], experts: ExpertFile, environment: EnvironmentConfig
) -> tuple[ExpertFile, ExpertsRecord] | None:
    """Return the completed form of some experts and its record, from the first folder that has it."""
    source = source_of(environment, experts)
    for folder in folders:
        record = read_record(folder)
        if record is not None and not store_differences(record.source, source, SOURCE_KEYS):
            kept = _read_kept(folder, record, environment)
            if kept is not None:
                return replace(experts, trajectories=kept.trajectories, unplayable=record.unplayable), record
    return None


def _read_kept(folder: Path, record: ExpertsRecord, environment: EnvironmentConfig) -> ExpertFile | None:
    """Return the completed file that a record names, or None where it is missing or another one lies there."""
    path = folder / EXPERTS
    if not record.sha256 or not path.exists() or _sha256(path) != record.sha256:
        return None
    return load_experts(path, environment.id, environment.kwargs)


def _write_record(folder: Path, record: ExpertsRecord) -> None:
    if read_record(folder) != record:
        write_json(folder / RECORD, {"schema": RECORD_FILE.version, **asdict(record)})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
