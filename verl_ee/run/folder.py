"""The folder of a run: what early experience leaves beside verl's checkpoints, and how far it got.

<trainer.default_local_dir>/
    early_experience/state.json         which run this is, which stages have finished, how far training got
    early_experience/lock               held by the job that works here
    early_experience/store/<set>/       transitions.parquet, branches.parquet
    early_experience/cache/             executed transitions that several sets share
    early_experience/reflections.parquet  rationales, accepted and rejected
    early_experience/summaries.parquet  of what was executed, where a world model predicts them
    early_experience/recording.parquet  what agent loops made of the demonstrations
    early_experience/<stage>/global_step_<n>/actor/  the policy after n steps of a stage, in verl's checkpoint layout
    early_experience/metrics.jsonl      one line per optimizer step of mid-training and per step of GRPO
    early_experience/summary.json       the result, rewritten after every stage
    early_experience/error.json         the message that ended the run, if one did
    global_step_0/                      the hand-over, in verl's own checkpoint layout
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.models import ROOT
from verl_ee.errors import ConfigError, StageError, WriteError
from verl_ee.experience.files.atomic import room_for, write_json
from verl_ee.run.identity import Identity, differences, identity_of
from verl_ee.run.state import StageProgress

SCHEMA = 2
LOCK_SECONDS = 20
"""Ray takes some seconds to end the processes of a job that was killed."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of a run.

    Attributes:
        root: `trainer.default_local_dir`, absolute.
        identity: of the job that works here.
    """

    root: Path
    identity: Identity = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, early: EarlyExperienceConfig) -> RunFolder:
        """Return the folder of a job."""
        return cls(Path(config.trainer.default_local_dir).expanduser().absolute(), identity_of(config, early))

    @property
    def own(self) -> Path:
        """The part that early experience writes."""
        return self.root / "early_experience"

    def store(self, name: str) -> Path:
        """The transition store of a set of branches."""
        return self.own / "store" / name

    @property
    def cache(self) -> Path:
        """What the sets of branches share while they are collected."""
        return self.own / "cache"

    def checkpoint(self, stage: str, step: int) -> Path:
        """The actor checkpoint after `step` optimizer steps of a stage."""
        return self.own / stage / f"global_step_{step}" / "actor"

    @property
    def hand_over(self) -> Path:
        """The checkpoint with which GRPO begins."""
        return self.root / "global_step_0"

    def finished(self) -> list[str]:
        """Return the stages that have finished, oldest first; empty in a new folder.

        Raises:
            StageError: if the state file is broken or of another schema.
        """
        return list(self._state().get("finished", []))

    def trained(self) -> dict[str, StageProgress]:
        """Return how far each stage was trained, in the order in which they were."""
        return {name: StageProgress(**item) for name, item in self._state().get("trained", {}).items()}

    def finish(self, *stages: str) -> None:
        """Record that stages have finished, in one step."""
        self._write(finished=[*self.finished(), *stages])

    def reach(self, stage: str, progress: StageProgress) -> None:
        """Record how far a stage was trained; its checkpoint must have been saved before."""
        trained = {name: asdict(item) for name, item in (self.trained() | {stage: progress}).items()}
        self._write(trained=trained)

    def check_free(self, resume_mode: str, force: bool = False) -> None:
        """Refuse a folder that cannot be written, or holds another run.

        Args:
            resume_mode: `trainer.resume_mode`.
            force: go on with a run whose settings or files were others.

        Raises:
            ConfigError: naming the folder, what it holds and the way out.
        """
        where = f"trainer.default_local_dir={str(self.root)!r}"
        self._check_writable(where)
        checkpoints = sorted(path.name for path in self.root.glob("global_step_*"))
        state = self._state()
        if not state:
            if checkpoints:
                raise ConfigError(
                    f"{where} holds checkpoints ({', '.join(checkpoints[:3])}) of a run without early experience. "
                    "Choose another folder; to start from those weights, set actor_rollout_ref.model.path to the "
                    "merged model (python -m verl.model_merger)."
                )
            return
        found = differences(state["identity"], self.identity)
        if found and not force:
            raise ConfigError(
                f"{where} holds a run with other settings or files:\n  " + "\n  ".join(found) + "\nChoose another "
                f"folder, repeat the command that made it to resume it, or add {ROOT}.resume=force to go on with "
                "what differs: finished stages stay as they are."
            )
        if resume_mode == "disable":
            raise ConfigError(
                f"{where} already holds this run, and trainer.resume_mode='disable' would overwrite it. "
                "Choose another folder, or use trainer.resume_mode=auto."
            )

    def hold(self) -> IO[str]:
        """Keep other jobs out of the folder for as long as the returned file is open.

        Raises:
            ConfigError: if another job works there, and does not end in `LOCK_SECONDS`.
        """
        path = self.own / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise ConfigError(
                        f"trainer.default_local_dir={str(self.root)!r} is in use by another job ({file.read().strip()})"
                        ". Wait for its end, stop it, or choose another folder."
                    ) from None
            time.sleep(0.2)
        with room_for(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        return file

    def write_error(self, error: BaseException, stage: str) -> None:
        """Write what ended the run, where that can still be written: a disk that ran full may be what ended it."""
        content = {"schema": SCHEMA, "stage": stage, "type": type(error).__name__, "message": str(error)}
        with suppress(OSError, WriteError):
            write_json(self.own / "error.json", content)

    def clear_error(self) -> None:
        """Remove what an earlier attempt left in `error.json`."""
        (self.own / "error.json").unlink(missing_ok=True)

    def _check_writable(self, where: str) -> None:
        probe = self.own / ".writable"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{where} cannot be written ({error.strerror}). Choose another folder.") from None

    def _write(self, **changed: Any) -> None:
        state = {"finished": [], "trained": {}, **self._state(), "schema": SCHEMA, "identity": self.identity, **changed}
        write_json(self.own / "state.json", state)

    def _state(self) -> Mapping[str, Any]:
        path = self.own / "state.json"
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            schema = int(state["schema"])
        except (ValueError, KeyError, TypeError):
            raise StageError(
                f"{path} is not a state file of verl_ee. Choose another trainer.default_local_dir."
            ) from None
        if schema != SCHEMA:
            raise StageError(
                f"{path} has schema {schema}; this verl_ee reads {SCHEMA}. Resume the run with the verl_ee that began "
                "it, or choose another trainer.default_local_dir."
            )
        return state
