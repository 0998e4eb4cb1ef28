"""The process that holds an environment: `python -m verl_ee.experience.host DESCRIPTOR`, driven by a supervisor.

It is told what to do over its pipes; the descriptor is that of its gauge.

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
from verl_ee.experience import ways
from verl_ee.experience.brancher import branch
from verl_ee.experience.gauge import Gauge
from verl_ee.experience.player import Holder
from verl_ee.experience.work import ANSWER, TRAJECTORY, UNIT, receive, send

BEGIN, READY, FATAL, DONE = "begin", "ready", "fatal", "done"


def main() -> None:
    """Serve until the supervisor closes the pipe."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What an environment prints belongs to the log, not between the answers.
    os.dup2(2, 1)
    gauge = Gauge(int(sys.argv[1]))
    os.close(int(sys.argv[1]))
    try:
        _serve(requests, answers, gauge)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except EarlyExperienceError as error:
        _say(answers, FATAL, str(error))
    except Exception as error:
        _say(answers, FATAL, f"{type(error).__name__}: {error}")


def _serve(requests: IO[bytes], answers: IO[bytes], gauge: Gauge) -> None:
    opening = receive(requests)
    if opening is None:
        return
    content = json.loads(opening)
    environment = EnvironmentConfig.model_validate(content["environment"])
    config = CollectConfig.model_validate(content["collect"])
    sample = TRAJECTORY.validate_python(content["sample"])
    owned = ways.belongings()
    holder = Holder(lambda: make(environment.id, environment.kwargs), config.step_timeout, config.start_timeout, gauge)
    way = ways.choose(holder, config.way, environment.id, sample, owned, content["way_key"])
    _say(answers, READY, way.name)
    while (message := receive(requests)) is not None:
        unit = UNIT.validate_json(message)
        for answer in branch(holder, way, unit, config, lambda step, action: _say(answers, BEGIN, [step, action])):
            send(answers, ANSWER.dump_json(answer))
        _say(answers, DONE, None)


def _say(pipe: IO[bytes], what: str, value: Any) -> None:
    send(pipe, json.dumps({what: value}).encode())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
