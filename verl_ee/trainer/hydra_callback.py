"""The flag's part in the driver: refuse a job early, choose its console, end it with one clear message."""

from __future__ import annotations

import atexit
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import ray
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError, EarlyExperienceError, own_error
from verl_ee.experience.progress import plugin_logger
from verl_ee.run.console import QuietConsole
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.checks.job import check_job

logger = plugin_logger(__name__)
FORWARD_SECONDS = 0.5
"""Ray brings the last lines of its processes to the driver with a delay; Ray's own shutdown at exit waits as long."""


class FlagCallback(Callback):
    """Hydra callback that the flag adds to a job.

    Hydra turns an exception of a callback into a warning, so a refusal leaves through `SystemExit`.
    """

    def __init__(self) -> None:
        self._console: QuietConsole | None = None

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        """Refuse what cannot work, before Ray starts; then choose the console."""
        try:
            check_job(config)
            if OmegaConf.select(config, f"{ROOT}.console") == "quiet":
                self._console = QuietConsole(_folder_of(config).job_log)
                logger.info("the job begins: Ray, workers and rollout servers start")
                # An interrupted job has no end that Hydra tells of.
                atexit.register(self._end_quiet, failed=True)
        except EarlyExperienceError as error:
            _leave(error)
        except Exception as error:
            # Left alone, it would become a warning of Hydra, and the job would start unchecked.
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            _leave(
                ConfigError(
                    f"This job cannot be checked before it starts: {reason}. The lines above tell where; repair what "
                    "they name, or report it with them."
                )
            )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        """Print the message of one of our errors as the last line, behind the traceback of a Ray actor."""
        failed = job_return.status is JobStatus.FAILED
        error = job_return._return_value if failed else None
        own, is_quiet = own_error(error), self._console is not None
        if isinstance(error, BaseException) and error is not own and (own is not None or is_quiet):
            traceback.print_exception(error)
        self._end_quiet(failed)
        if own is not None:
            ray.shutdown()
            _leave(own)
        if failed and is_quiet:
            # Hydra would print the traceback on the console.
            raise SystemExit(1)

    def _end_quiet(self, failed: bool) -> None:
        """Stop Ray while its output still goes to the log, then give the console back."""
        if self._console is not None:
            console, self._console = self._console, None
            time.sleep(FORWARD_SECONDS if ray.is_initialized() else 0.0)
            ray.shutdown()
            console.close(failed)


def _folder_of(config: DictConfig) -> RunFolder:
    return RunFolder(Path(config.trainer.default_local_dir).expanduser().absolute())


def _leave(error: EarlyExperienceError) -> NoReturn:
    sys.stdout.flush()
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)
