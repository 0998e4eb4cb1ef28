"""The demonstrations of a job: checked before it starts, recorded once, and kept for a job that goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.config import EarlyExperienceConfig, Objective, built
from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError, ExampleFileError
from verl_ee.objectives.files.recordings import Recording, read_recording, read_responses, write_recording
from verl_ee.trainer.rollout.recording.recorder import record


def recorded(store: Path, path: Path, config: DictConfig, max_dropped: float) -> Recording:
    """Return the recording of demonstrations: from a file if it holds these, else made now and written there.

    So a job that is resumed learns from the same examples, whatever a tool would answer by then.

    Args:
        store: file of the recording.
        path: file of the demonstrations.
        config: config of verl.
        max_dropped: share of the rows that may fail.

    Raises:
        ExampleFileError: if a file is broken.
        ExampleError: if more rows fail than allowed.
    """
    # The package's own loop gives other outputs then.
    samples = "episode" if (config.get(ROOT) or {}).get("samples") == "episode" else ""
    try:
        source = hashlib.sha256(path.read_bytes() + samples.encode()).hexdigest()
    except OSError as error:
        raise ExampleFileError(f"{path} cannot be read ({error.strerror}). Name an existing file.") from None
    recording = read_recording(store, source)
    if recording is None:
        recording = record(path, config, max_dropped)
        write_recording(store, recording, source)
    return recording


def check_demonstrations(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> None:
    """Refuse demonstrations that cannot be read, that no stage learns, or that another file replaces.

    Args:
        config: config of the job.
        given: objectives that `examples` has rows of.

    Raises:
        ConfigError: naming the keys.
        ExampleFileError: naming file and row.
    """
    if config.demonstrations is None:
        return
    key = f"{ROOT}.demonstrations={config.demonstrations!r}"
    if "imitation" in given:
        raise ConfigError(f"{key}, but {ROOT}.examples={config.examples!r} has rows of imitation too. Drop either.")
    if "imitation" not in built(config):
        raise ConfigError(
            f"{key}, but no stage learns imitation. Add it to the objectives of a stage, or drop the key."
        )
    read_responses(Path(config.demonstrations).expanduser())
