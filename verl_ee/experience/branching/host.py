"""The process that holds an environment, driven by a supervisor.

It starts with `python -m verl_ee.experience.branching.host DESCRIPTOR`. It is told what to do over its pipes; the descriptor is that of its gauge.

It has a single thread, so that it can be forked, and nothing else in it, so that it may die: a step that takes too long
ends it, a crash of the environment ends it, and the supervisor starts another.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import make
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.fork import process_resources
from verl_ee.experience.branching.host_meter import HostMeter
from verl_ee.experience.branching.protocol import STATE_RESULT, TRAJECTORY, WORK_UNIT, read_message, write_message
from verl_ee.experience.branching.restore import choose_restore
from verl_ee.experience.branching.session import EnvironmentSession

BEGIN, READY, FATAL, DONE = "begin", "ready", "fatal", "done"


def main() -> None:
    """Serve until the supervisor closes the pipe."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What an environment prints belongs to the log, not between the answers.
    os.dup2(2, 1)
    meter = HostMeter(int(sys.argv[1]))
    os.close(int(sys.argv[1]))
    try:
        _serve(requests, answers, meter)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except EarlyExperienceError as error:
        _say(answers, FATAL, str(error))
    except Exception as error:
        _say(answers, FATAL, f"{type(error).__name__}: {error}")


def _serve(requests: IO[bytes], answers: IO[bytes], meter: HostMeter) -> None:
    opening = read_message(requests)
    if opening is None:
        return
    content = json.loads(opening)
    environment = EnvironmentConfig.model_validate(content["environment"])
    config = CollectConfig.model_validate(content["collect"])
    sample = TRAJECTORY.validate_python(content["sample"])
    owned = process_resources()
    session = EnvironmentSession(
        lambda: make(environment.id, environment.kwargs), config.step_timeout, config.start_timeout, meter
    )
    restore = choose_restore(session, config.restore, environment.id, sample, owned, content["restore_key"])
    _say(answers, READY, restore.name)
    while (message := read_message(requests)) is not None:
        unit = WORK_UNIT.validate_json(message)
        for answer in branch(session, restore, unit, config, lambda step, action: _say(answers, BEGIN, [step, action])):
            write_message(answers, STATE_RESULT.dump_json(answer))
        _say(answers, DONE, None)


def _say(pipe: IO[bytes], what: str, value: Any) -> None:
    write_message(pipe, json.dumps({what: value}).encode())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
