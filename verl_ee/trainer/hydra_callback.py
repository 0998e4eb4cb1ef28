"""What happens in the driver when the flag is on: refuse early, end with one clear message."""

from __future__ import annotations

import sys
import traceback
from typing import Any, NoReturn

import ray
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_ee.errors import ConfigError, EarlyExperienceError
from verl_ee.trainer.job_check import check_job


class FlagCallback(Callback):
    """Hydra callback that the flag adds to a job.

    Hydra turns an exception of a callback into a warning, so a refusal leaves through `SystemExit`.
    """

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what cannot work, before Ray starts."""
        try:
            check_job(config)
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

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Print the message of one of our errors as the last line, in place of Ray's traceback."""
        if job_return.status is not JobStatus.FAILED:
            return
        error = ours(job_return._return_value)
        if error is not None:
            ray.shutdown()
            _leave(error)


def ours(error: object) -> EarlyExperienceError | None:
    """Return the error of ours that `error` is, wraps or was caused by.

    What fails in a Ray actor arrives as a RayTaskError that keeps the original under `cause`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, EarlyExperienceError):
            return error
        error = getattr(error, "cause", None) or getattr(error, "__cause__", None)
    return None


def _leave(error: EarlyExperienceError) -> NoReturn:
    sys.stdout.flush()
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)
