"""The folder of a run: the path of everything that lies in it, and the rules for whoever works there.

<trainer.default_local_dir>/
    early_experience/state.json           which run this is, which stages have finished, how far training got
    early_experience/lock                 held by the job that works here
    early_experience/experts.json         which experts the data come from; experts.jsonl: these, completed by plays
    early_experience/store/<set>/         transitions.parquet, branches.parquet
    early_experience/cache/               executed transitions that several sets share
    early_experience/reflections.parquet  rationales, accepted and rejected
    early_experience/summaries.parquet    summaries of executed transitions, where a world model predicts them
    early_experience/encoded/<stage>/     the examples of a stage as token ids, made once
    early_experience/recording.parquet    demonstrations as the job's agent loops recorded them
    early_experience/endpoint_<writer>.json  tokens that a writer's server has read and written
    early_experience/<stage>/global_step_<n>/actor/  the policy after n steps of a stage, in verl's checkpoint layout
    early_experience/metrics.jsonl        one line per optimizer step of mid-training and per step of GRPO
    early_experience/summary.json         the result, rewritten after every stage
    early_experience/error.json           the message that ended the run, if one did
    early_experience/report.png           the plot of `verl-ee report`
    job.log                               the output of the job
    global_step_0/                        the hand-over, in verl's own checkpoint layout
    global_step_<n>/                      GRPO's checkpoints, verl's own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from omegaconf import DictConfig

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError
from verl_ee.experience.collecting.completed_experts import EXPERTS
from verl_ee.run.error import RunError
from verl_ee.run.identity import Identity, differences, identity_of
from verl_ee.run.lock import lock
from verl_ee.run.state import RunState, StageProgress


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of a run.

    Attributes:
        root: `trainer.default_local_dir`.
        identity: identity of the job that works here; empty for a reader.
    """

    root: Path
    identity: Identity = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, early: EarlyExperienceConfig) -> RunFolder:
        """Return the folder of a job.

        Raises:
            ConfigError: if a file that the job names cannot be read.
        """
        return cls(Path(config.trainer.default_local_dir).expanduser().absolute(), identity_of(config, early))

    @property
    def files(self) -> Path:
        """The part that early experience writes; the files of rationales and summaries lie directly in it."""
        return self.root / ROOT

    @property
    def state_path(self) -> Path:
        """The file of `RunState`."""
        return self.files / "state.json"

    @property
    def summary_path(self) -> Path:
        """The file of `RunSummary`."""
        return self.files / "summary.json"

    @property
    def metrics_path(self) -> Path:
        """The file of `RunMetrics`."""
        return self.files / "metrics.jsonl"

    @property
    def error_path(self) -> Path:
        """The file of `RunError`."""
        return self.files / "error.json"

    @property
    def recording_path(self) -> Path:
        """The demonstrations as the job's agent loops recorded them."""
        return self.files / "recording.parquet"

    @property
    def encoded(self) -> Path:
        """The examples of all stages as token ids."""
        return self.files / "encoded"

    @property
    def completed_experts(self) -> Path:
        """The experts with all that the environment gives, where their file leaves something open."""
        return self.files / EXPERTS

    @property
    def cache(self) -> Path:
        """The transition cache that the sets of branches share while they are collected."""
        return self.files / "cache"

    @property
    def report_plot(self) -> Path:
        """The plot that `verl-ee report` draws."""
        return self.files / "report.png"

    @property
    def job_log(self) -> Path:
        """The output of the job."""
        return self.root / "job.log"

    @property
    def hand_over(self) -> Path:
        """The checkpoint with which GRPO begins."""
        return self.grpo_checkpoint(0)

    def store(self, name: str) -> Path:
        """Return the transition store of a set of branches."""
        return self.files / "store" / name

    def ledger(self, writer: str) -> Path:
        """Return the file that counts the tokens of a writer's server.

        Args:
            writer: name of the writer in `early_experience.writers`.
        """
        return self.files / f"endpoint_{writer}.json"

    def checkpoint(self, stage: str, step: int) -> Path:
        """Return the actor checkpoint after `step` optimizer steps of a stage."""
        return self.files / stage / f"global_step_{step}" / "actor"

    def grpo_checkpoint(self, step: int) -> Path:
        """Return verl's checkpoint after `step` steps of GRPO."""
        return self.root / f"global_step_{step}"

    def finished(self) -> tuple[str, ...]:
        """Return what has finished, oldest first; empty in a new folder.

        Raises:
            StageError: if the state file is broken or of another schema.
        """
        return self._state().finished

    def trained(self) -> Mapping[str, StageProgress]:
        """Return the progress of each stage that has a checkpoint, in the order in which they were trained.

        Raises:
            StageError: if the state file is broken or of another schema.
        """
        return self._state().trained

    def finish(self, *names: str) -> None:
        """Record that stages have finished, in one step."""
        self._state().with_finished(*names).write(self.state_path)

    def reach(self, stage: str, progress: StageProgress) -> None:
        """Record how far a stage was trained; its checkpoint must have been saved before."""
        self._state().with_progress(stage, progress).write(self.state_path)

    def forget(self, stage: str) -> None:
        """Record that a stage has not been trained, because it is trained again from its beginning."""
        self._state().without_progress(stage).write(self.state_path)

    def write_error(self, error: BaseException, stage: str) -> None:
        """Write what ended the run, where that can still be written."""
        RunError.of(error, stage).write(self.error_path)

    def clear_error(self) -> None:
        """Remove what an earlier attempt left in `error.json`."""
        self.error_path.unlink(missing_ok=True)

    def check_free(self, resume_mode: str, force: bool = False) -> None:
        """Refuse a folder that cannot be written, or holds another run.

        Args:
            resume_mode: `trainer.resume_mode`.
            force: go on with a run whose settings or files were others.

        Raises:
            ConfigError: naming the folder, what it holds and the way out.
            StageError: if the state file is broken or of another schema.
        """
        folder = f"trainer.default_local_dir={str(self.root)!r}"
        self._check_writable(folder)
        state = RunState.read(self.state_path)
        if state is None:
            self._check_no_checkpoints(folder)
            return
        differing = differences(state.identity, self.identity)
        if differing and not force:
            raise ConfigError(
                f"{folder} holds a run with other settings or files:\n  " + "\n  ".join(differing) + "\nChoose another "
                f"folder, repeat the command that made it to resume it, or add {ROOT}.resume=force to go on with "
                "what differs: finished stages stay as they are."
            )
        if resume_mode == "disable":
            raise ConfigError(
                f"{folder} already holds this run, and trainer.resume_mode='disable' would overwrite it. "
                "Choose another folder, or use trainer.resume_mode=auto."
            )

    def hold(self) -> IO[str]:
        """Keep other jobs out of the folder for as long as the returned file is open.

        Raises:
            ConfigError: if another job works there, and does not end in `verl_ee.run.lock.LOCK_SECONDS`.
        """
        return lock(self.files / "lock", self.root)

    def _state(self) -> RunState:
        """Return the state of this run, under the identity of the job that works here."""
        state = RunState.read(self.state_path)
        return RunState(self.identity) if state is None else RunState(self.identity, state.finished, state.trained)

    def _check_writable(self, folder: str) -> None:
        probe = self.files / ".writable"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}). Choose another folder.") from None

    def _check_no_checkpoints(self, folder: str) -> None:
        checkpoints = sorted(path.name for path in self.root.glob("global_step_*"))
        if checkpoints:
            raise ConfigError(
                f"{folder} holds checkpoints ({', '.join(checkpoints[:3])}) of a run without early experience. "
                "Choose another folder; to start from those weights, set actor_rollout_ref.model.path to the "
                "merged model (python -m verl.model_merger)."
            )
