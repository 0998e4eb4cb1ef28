"""What is asked of an environment worker, and what it answers: plain data that crosses processes as JSON."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import IO, Any

from pydantic import TypeAdapter

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvError
from verl_ee.prompts.actions import canonical

RESTORE_METHODS = ("snapshot", "fork", "replay")
_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class StateRequest:
    """A state to branch.

    Attributes:
        step: the step of the trajectory whose state it is.
        actions: the alternatives, or None to choose from what the environment lists there.
        known: canonical actions whose outcome is not asked for.
        expert: whether the outcome of the expert's own action is asked for.
    """

    step: int
    actions: tuple[str, ...] | None = None
    known: tuple[str, ...] = ()
    expert: bool = True


@dataclass(frozen=True)
class WorkUnit:
    """What one worker does in one go: states of one trajectory, in ascending order.

    Attributes:
        index: position of the trajectory in its file.
        trajectory: what the expert did.
        requests: the states.
    """

    index: int
    trajectory: ExpertTrajectory
    requests: tuple[StateRequest, ...]


@dataclass(frozen=True)
class Outcome:
    """An action and what came back."""

    action: str
    observation: str
    valid: bool
    done: bool


@dataclass(frozen=True)
class Fault:
    """Something that went wrong at a state.

    Attributes:
        trajectory: position of the trajectory in its file.
        step: step of the state.
        kind: `observation` or `admissible actions` where a state is not the recorded one; `raised`, `not text`,
            `time limit` or `died` where the environment failed; `shared` where another trajectory was to execute the
            action and could not.
        message: what was seen, in full.
        action: the action whose outcome is missing for it, if there is one.
    """

    trajectory: int
    step: int
    kind: str
    message: str
    action: str | None = None

    def __str__(self) -> str:
        action = "" if self.action is None else f", action {self.action!r}"
        return f"trajectory {self.trajectory}, step {self.step}{action}: {self.message}"


@dataclass(frozen=True)
class Usage:
    """What was spent on an environment.

    Attributes:
        env_steps: steps executed, replay included.
        resets: episodes begun.
    """

    env_steps: int = 0
    resets: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.env_steps + other.env_steps, self.resets + other.resets)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.env_steps - other.env_steps, self.resets - other.resets)


@dataclass(frozen=True)
class StateResult:
    """What branching one state gave.

    Attributes:
        index: position of the trajectory in its file.
        step: step of the state.
        actions: every alternative of the state, known ones included.
        outcomes: of those that were not known.
        expert: outcome of the expert's action, if it was asked for and could be had.
        faults: what went wrong; those that a second attempt made good have no `action`.
        lost: whether the state could not be reached, so that nothing was executed there.
        usage: spent since the answer before.
    """

    index: int
    step: int
    actions: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    expert: Outcome | None = None
    faults: tuple[Fault, ...] = ()
    lost: bool = False
    usage: Usage = field(default_factory=Usage)


WORK_UNIT, STATE_RESULT = TypeAdapter(WorkUnit), TypeAdapter(StateResult)
TRAJECTORY = TypeAdapter(ExpertTrajectory)


def env_steps_of(unit: WorkUnit, restore: str, listed: int = 0) -> int:
    """Return how many environment steps a unit takes on a fresh environment.

    Where the environment can return to a state, the walk along the expert's actions is executed once: up to the last
    state that is asked for, and one further if the expert's outcome there is. By replay every alternative is an
    episode of its own, and the walk comes with it.

    Args:
        unit: the states; alternatives that are not given count as `listed`.
        restore: one of `WAYS`.
        listed: alternatives per state where the environment chooses.
    """
    counts = {ask.step: len(_open(ask)) if ask.actions is not None else listed for ask in unit.requests}
    last = unit.requests[-1]
    walked = max((ask.step + 1 for ask in unit.requests if ask.expert), default=0)
    if restore != "replay":
        return max(walked, last.step) + sum(counts.values())
    deepest = max((step for step, count in counts.items() if count), default=-1)
    episodes = sum(count * (step + 1) for step, count in counts.items())
    return episodes + (walked if walked > deepest else 0)


def _open(ask: StateRequest) -> list[str]:
    known = set(ask.known)
    return [action for action in ask.actions or () if canonical(action) not in known]


def write_message(pipe: IO[bytes], content: bytes) -> None:
    """Write one message: its length in eight bytes, then the message."""
    pipe.write(_LENGTH.pack(len(content)) + content)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes | None:
    """Read one message, or None where the other side has closed the pipe, also in mid-message."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = pipe.read(length)
    return content if len(content) == length else None


class StateLostError(Exception):
    """A state is not the recorded one, or the environment failed on the way; never leaves a worker."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.kind = kind


def checked_text(observation: Any) -> str:
    """Return an observation if it is text that can be stored.

    Raises:
        LostError: if it is not a str, or holds code points that UTF-8 has no form for.
    """
    if not isinstance(observation, str):
        raise StateLostError("not text", f"the observation is {type(observation).__name__}, expected str")
    try:
        observation.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = observation[max(error.start - 20, 0) : error.end + 20]
        raise StateLostError("not text", f"the observation is not valid Unicode near {shown!r}") from None
    return observation


def refuse_replay(environment: str) -> EnvError:
    """Return the error of an environment that offers no way back."""
    return EnvError(
        f"{environment} is declared nondeterministic, so replaying actions does not lead back to a state, and it has "
        "no snapshots and cannot be forked. Give it snapshot() and restore(), or declare `forkable = True` if a fork "
        "of its process shares nothing with it."
    )
