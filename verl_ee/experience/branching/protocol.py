"""Messages between the driver, its environment workers and their hosts: plain data that crosses processes as JSON."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from pydantic import TypeAdapter

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import CanonicalForm, ExpertTrajectory, canonical_form
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

TRIES = 2
"""Attempts to make an environment, to reach a state, or to execute an action there."""
RESTORE_METHODS = ("snapshot", "fork", "replay")
AUTO = "auto"
"""Stands for the cheapest of the methods that an environment can serve."""
WALK = "walk"
"""Stands for no method: for units without alternatives, which go along their trajectory once."""
_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class StateRequest:
    """A state to branch.

    Attributes:
        step: step of the trajectory at which the state is.
        alternatives: actions to execute there, or None to choose them from the list of the environment.
        known: canonical actions whose outcome is known already.
        include_expert: whether the outcome of the expert's own action is wanted.
        include_seen: whether the result says what the environment showed in the state.
    """

    step: int
    alternatives: tuple[str, ...] | None = None
    known: tuple[str, ...] = ()
    include_expert: bool = True
    include_seen: bool = False

    def unknown_actions(self, actions: Sequence[str], canonical: CanonicalForm) -> list[str]:
        """Return the actions whose outcome is not known, in their order."""
        known = set(self.known)
        return [action for action in actions if canonical(action) not in known]


@dataclass(frozen=True)
class WorkUnit:
    """States of one trajectory that a worker branches in one go.

    Attributes:
        trajectory_index: position of the trajectory in its file.
        trajectory: the expert's actions and observations.
        requests: the states, in ascending order.
    """

    trajectory_index: int
    trajectory: ExpertTrajectory
    requests: tuple[StateRequest, ...]


@dataclass(frozen=True)
class Fault:
    """Something that went wrong at a state.

    Attributes:
        ref: the state.
        kind: `instruction`, `observation` or `admissible actions` where a state is not the recorded one; `outcome`
            where the expert's action did not come out as before; `raised`, `not text`, `time limit` or `died` where
            the environment failed; `start` where it could not be made; `conflict` where an action has two outcomes;
            `shared` where another trajectory was to execute the action and could not.
        message: full description.
        action: the action whose outcome is missing because of it, or None.
    """

    ref: StateRef
    kind: str
    message: str
    action: str | None = None

    def __str__(self) -> str:
        action = "" if self.action is None else f", action {self.action!r}"
        return f"trajectory {self.ref.trajectory}, step {self.ref.step}{action}: {self.message}"


@dataclass(frozen=True)
class Usage:
    """Environment steps and resets that were executed.

    Attributes:
        env_steps: steps, replay included.
        resets: episodes begun.
    """

    env_steps: int = 0
    resets: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.env_steps + other.env_steps, self.resets + other.resets)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.env_steps - other.env_steps, self.resets - other.resets)


@dataclass(frozen=True)
class SeenState:
    """Content of an environment's info dict in a state; None where it does not say.

    Attributes:
        instruction: the task in words.
        admissible_actions: the actions that it lists.
        solved: whether the task is solved.
    """

    instruction: str | None = None
    admissible_actions: tuple[str, ...] | None = None
    solved: bool | None = None


@dataclass(frozen=True)
class StateResult:
    """The result of branching one state.

    Attributes:
        ref: the state.
        alternatives: every alternative of the state, known ones included.
        outcomes: outcomes of the alternatives that were not known.
        expert_outcome: outcome of the expert's action, if it was requested and could be executed.
        faults: everything that went wrong; a fault that a second attempt repaired has no `action`.
        lost: whether the state could not be reached, so that nothing was executed there.
        usage: steps and resets since the result before.
        seen: content of the info dict in the state, if it was requested.
    """

    ref: StateRef
    alternatives: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    expert_outcome: Outcome | None = None
    faults: tuple[Fault, ...] = ()
    lost: bool = False
    usage: Usage = field(default_factory=Usage)
    seen: SeenState | None = None


def env_steps_of(unit: WorkUnit, restore: str, listed: int = 0) -> int:
    """Return how many environment steps a unit takes on a fresh environment.

    An environment with snapshots or forks executes the walk along the expert's actions once: up to the last requested
    state, and one step further if the expert's outcome there is wanted. By replay every alternative is an episode of
    its own, and the walk comes with it.

    Args:
        unit: the states; a state without named alternatives counts as `listed` of them.
        restore: one of `RESTORE_METHODS`.
        listed: alternatives per state where the environment chooses.
    """
    canonical = canonical_form(unit.trajectory.environment)
    counts = {
        request.step: listed
        if request.alternatives is None
        else len(request.unknown_actions(request.alternatives, canonical))
        for request in unit.requests
    }
    walked = max((request.step + 1 for request in unit.requests if request.include_expert), default=0)
    if restore != "replay":
        return max(walked, unit.requests[-1].step) + sum(counts.values())
    deepest = max((step for step, count in counts.items() if count), default=-1)
    episodes = sum(count * (step + 1) for step, count in counts.items())
    return episodes + (walked if walked > deepest else 0)


@dataclass(frozen=True)
class HostOpening:
    """The first message to a host.

    Attributes:
        environment: the environment that it holds.
        collect: time limits, and the choice of alternatives.
        sample: a trajectory of the environment, on which methods to restore a state are tried.
        restore_key: the key `restore` as the user writes it, for messages.
    """

    environment: EnvironmentConfig
    collect: CollectConfig
    sample: ExpertTrajectory
    restore_key: str


@dataclass(frozen=True)
class Ready:
    """A host has made its environment.

    Attributes:
        faults: why earlier attempts failed.
    """

    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestoreChosen:
    """A host has chosen its method to restore a state."""

    restore: str


@dataclass(frozen=True)
class Attempt:
    """A host is about to reach a state, or to execute an action there.

    Attributes:
        step: step of the state.
        action: the action, or None for the way to the state.
    """

    step: int
    action: str | None = None


@dataclass(frozen=True)
class Failure:
    """A host cannot go on, whatever it is asked to do."""

    message: str


@dataclass(frozen=True)
class UnitDone:
    """A host has sent every result of a unit."""


HostMessage = Ready | RestoreChosen | Attempt | StateResult | Failure | UnitDone

HOST_OPENING, WORK_UNIT = TypeAdapter(HostOpening), TypeAdapter(WorkUnit)
_TYPES: dict[bytes, type[HostMessage]] = {
    b"O": Ready,
    b"C": RestoreChosen,
    b"A": Attempt,
    b"R": StateResult,
    b"F": Failure,
    b"D": UnitDone,
}
_TAGS = {message_type: tag for tag, message_type in _TYPES.items()}
_ADAPTERS: dict[bytes, TypeAdapter[HostMessage]] = {tag: TypeAdapter(cls) for tag, cls in _TYPES.items()}


def encode_host_message(message: HostMessage) -> bytes:
    """Return a message of a host as one byte for its type, then JSON."""
    tag = _TAGS[type(message)]
    return tag + _ADAPTERS[tag].dump_json(message)


def decode_host_message(content: bytes) -> HostMessage:
    """Return the message that `encode_host_message` has encoded."""
    return _ADAPTERS[content[:1]].validate_json(content[1:])


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
    """A state is not the recorded one, or the environment failed on the way; it never leaves a worker.

    Attributes:
        kind: as in `Fault.kind`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(encodable(message))
        self.kind = kind


def encodable(text: str) -> str:
    """Return a text with every code point that UTF-8 cannot encode written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
