"""Messages of a host, letter by letter, and the steps of a unit, counted before it is executed."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from support.games import MUCH, TOKENS, SavedGame, expert

from verl_ee.config import CollectConfig
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.fork import ForkRestore
from verl_ee.experience.branching.protocol import (
    Attempt,
    Failure,
    Fault,
    HostMessage,
    Ready,
    RestoreChosen,
    StateRequest,
    StateResult,
    UnitDone,
    Usage,
    WorkUnit,
    decode_host_message,
    encode_host_message,
    env_steps_of,
    read_message,
    write_message,
)
from verl_ee.experience.branching.restore import ReplayRestore, RestoreMethod, SnapshotRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

K = 3
UNTOLD = Outcome("press 2", "A door.", None, False, "budget exceeded")
OUTCOME = Outcome("press 1", TOKENS + MUCH[:100], False, True)
FAULT = Fault(StateRef(3, 4), "died", "no pulse \u00e9", "press 2")


def states(
    *steps: int, include_expert: bool = True, actions: int | None = None, known: int = 0
) -> tuple[StateRequest, ...]:
    """Request states, with their own choice of alternatives or with `actions` named ones, `known` of them known."""
    named = None if actions is None else tuple(f"press {number + 1}" for number in range(actions))
    return tuple(StateRequest(step, named, (named or ())[:known], include_expert) for step in steps)


SHAPES: dict[str, Callable[[], tuple[StateRequest, ...]]] = {
    "whole": lambda: states(*range(8)),
    "without-expert": lambda: states(*range(8), include_expert=False),
    "one-state": lambda: states(3),
    "one-state-without-expert": lambda: states(3, include_expert=False),
    "first": lambda: states(0, include_expert=False),
    "last": lambda: states(7),
    "gaps": lambda: states(1, 2, 5),
    "gaps-without-expert": lambda: states(1, 2, 5, include_expert=False),
    "named": lambda: states(0, 4, 7, actions=5),
    "known": lambda: states(0, 4, 7, actions=5, known=2),
    "all-known": lambda: states(2, 6, actions=4, known=4),
    "nothing-but-walk": lambda: states(5, actions=0),
    "expert-early": lambda: (*states(1, actions=2), *states(6, actions=2, include_expert=False)),
    "expert-one-before": lambda: (*states(1, actions=2), *states(2, actions=2, include_expert=False)),
    "expert-only-late": lambda: (*states(1, actions=2, include_expert=False), *states(6, actions=0)),
    "known-late": lambda: (*states(1, actions=2), *states(6, actions=2, known=2)),
}


@pytest.mark.parametrize("cls", [SnapshotRestore, ForkRestore, ReplayRestore])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_of_a_unit_are_known_beforehand(cls: type[RestoreMethod], shape: str) -> None:
    unit = WorkUnit(0, expert(length=8), SHAPES[shape]())
    session, restore = EnvironmentSession(SavedGame), cls()
    results = list(branch(session, restore, unit, CollectConfig(k=K)))
    assert session.usage.env_steps == env_steps_of(unit, restore.name, K)
    assert sum((result.usage for result in results), Usage()) == session.usage


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        RestoreChosen("fork"),
        Attempt(4),
        Attempt(0, "press \u00e9\n"),
        Failure("no room"),
        UnitDone(),
        StateResult(StateRef(3, 4), lost=True, faults=(FAULT,)),
        StateResult(StateRef(0, 0), ("press 1",), (OUTCOME, UNTOLD), OUTCOME, (FAULT,), False, Usage(5, 2)),
    ],
    ids=repr,
)
def test_a_message_of_a_host_comes_back_as_it_was_sent(message: HostMessage) -> None:
    pipe = io.BytesIO()
    write_message(pipe, encode_host_message(message))
    write_message(pipe, encode_host_message(UnitDone()))
    content = pipe.getvalue()
    pipe.seek(0)
    first, second = read_message(pipe), read_message(pipe)
    assert first is not None
    assert decode_host_message(first) == message
    assert second == encode_host_message(UnitDone())
    assert read_message(pipe) is None
    for end in (0, 1, 7, 8, len(content) - 10):
        # The other side has died in mid-message; the second message is nine bytes or longer.
        broken = io.BytesIO(content[:end])
        assert read_message(broken) in (None, first)
        assert read_message(broken) is None
