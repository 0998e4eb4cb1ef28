"""Requests to a server in a sliding window: as many as it takes, none behind another's answer."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest

from verl_ee.objectives.writing.sliding_window import as_they_come


def test_a_slow_answer_holds_up_no_other() -> None:
    asked, turns = set[int](), itertools.count()

    async def ask(number: int) -> int:
        # The first waits for the last, and not for ever: they may wait for it.
        while number == 0 and 9 not in asked and next(turns) < 1000:
            await asyncio.sleep(0)
        asked.add(number)
        return number * number

    answers = list(as_they_come(range(10), ask, 3))
    assert sorted(answers) == [(number, number * number) for number in range(10)]
    assert [number for number, _ in answers][:8] == list(range(1, 9))


def test_as_many_are_under_way_as_the_window_holds() -> None:
    under_way, counts = 0, []

    async def ask(number: int) -> int:
        nonlocal under_way
        under_way += 1
        counts.append(under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return number

    assert len(list(as_they_come(range(100), ask, 7))) == 100
    assert max(counts) == 7


def test_requests_are_taken_one_by_one() -> None:
    taken = []

    def requests():
        for number in range(100):
            taken.append(number)
            yield number

    async def ask(number: int) -> int:
        return number

    answers = as_they_come(requests(), ask, 4)
    next(answers)
    assert len(taken) == 4
    answers.close()
    assert len(taken) == 4


def test_what_is_under_way_at_the_end_is_waited_for() -> None:
    stopped = False

    async def ask(number: int) -> int:
        nonlocal stopped
        await asyncio.sleep(0)
        stopped = stopped or number == 2
        return number

    answers = [number for number, _ in as_they_come(range(50), ask, 5, ended=lambda: stopped)]
    assert answers == [0, 1, 2, 3, 4]


def test_a_failure_cancels_the_others_and_closes_the_client() -> None:
    calls = []

    @asynccontextmanager
    async def client():
        calls.append("open")
        yield
        calls.append("closed")

    async def ask(number: int) -> int:
        if number == 1:
            raise ValueError("no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            calls.append(f"cancelled {number}")
            raise
        return number

    with pytest.raises(ValueError, match="no"):
        list(as_they_come(range(3), ask, 3, client=client()))
    assert calls[0] == "open"
    assert calls[-1] == "closed"
    assert sorted(calls[1:-1]) == ["cancelled 0", "cancelled 2"]


def test_what_had_come_when_one_failed_is_not_lost() -> None:
    async def ask(number: int) -> int:
        if number == 0:
            raise ValueError("no")
        return number

    answers = as_they_come(range(3), ask, 3)
    assert [next(answers)[0], next(answers)[0]] == [1, 2]
    with pytest.raises(ValueError, match="no"):
        next(answers)
