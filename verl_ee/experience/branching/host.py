"""The process that holds an environment, driven by a supervisor over two pipes.

It starts with `python -m verl_ee.experience.branching.host DESCRIPTOR`; the descriptor is that of its meter. It gets
the opening, the name of a method to restore a state, then units of work, one after the other.

It has a single thread, so that it can be forked. It holds nothing but the environment, so that it may die: a step that
takes too long ends it, a crash of the environment ends it, and the supervisor starts another.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO

from verl_ee.envs import arguments, make
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.fork import process_resources
from verl_ee.experience.branching.host_meter import HostMeter
from verl_ee.experience.branching.protocol import (
    HOST_OPENING,
    WORK_UNIT,
    Attempt,
    Failure,
    HostMessage,
    Ready,
    RestoreChosen,
    UnitDone,
    encodable,
    encode_host_message,
    read_message,
    write_message,
)
from verl_ee.experience.branching.restore import choose_restore
from verl_ee.experience.branching.session import EnvironmentSession


class Host:
    """Serves one supervisor."""

    def __init__(self, requests: IO[bytes], results: IO[bytes], meter: HostMeter) -> None:
        self._requests, self._results, self._meter = requests, results, meter

    def serve(self) -> None:
        """Serve until the supervisor closes its pipe; a failure is reported and ends the service."""
        try:
            self._serve()
        except (BrokenPipeError, KeyboardInterrupt):
            pass
        except EarlyExperienceError as error:
            self._send(Failure(encodable(str(error))))
        except Exception as error:
            self._send(Failure(encodable(f"{type(error).__name__}: {error}")))

    def _serve(self) -> None:
        content = read_message(self._requests)
        if content is None:
            return
        opening = HOST_OPENING.validate_python(json.loads(content))
        environment, config = opening.environment, opening.collect
        # Nothing is gained by a second attempt with an unknown id or a wrong argument.
        arguments(environment.id, environment.kwargs)
        inherited = process_resources()
        session = EnvironmentSession(
            lambda: make(environment.id, environment.kwargs), config.step_timeout, config.start_timeout, self._meter
        )
        session.prepare()
        self._send(Ready(session.take_start_faults()))
        requested = read_message(self._requests)
        if requested is None:
            return
        restore = choose_restore(session, requested.decode(), opening, inherited)
        self._send(RestoreChosen(restore.name))
        while (content := read_message(self._requests)) is not None:
            unit = WORK_UNIT.validate_json(content)
            for result in branch(session, restore, unit, config, self._report_attempt):
                self._send(result)
            self._send(UnitDone())

    def _report_attempt(self, step: int, action: str | None) -> None:
        self._send(Attempt(step, action))

    def _send(self, message: HostMessage) -> None:
        write_message(self._results, encode_host_message(message))


def main() -> None:
    """Run a host on the standard input and output of this process."""
    requests = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    # The prints of an environment belong to the log, not between the results.
    os.dup2(2, 1)
    meter = HostMeter(int(sys.argv[1]))
    os.close(int(sys.argv[1]))
    Host(requests, results, meter).serve()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
