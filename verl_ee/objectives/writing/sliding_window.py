"""Answers from a server, as they come, with as many requests under way as it works on at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def as_they_come(
    requests: Iterable[Request],
    ask: Callable[[Request], Awaitable[Answer]],
    window: int,
    *,
    ended: Callable[[], bool] = lambda: False,
    client: AbstractAsyncContextManager[Any] | None = None,
) -> Iterator[tuple[Request, Answer]]:
    """Yield each request with its answer, in the order in which answers come.

    No request waits for the slowest of those before it. Requests make progress only while the caller waits for the
    next answer.

    Args:
        requests: taken one by one.
        ask: asks for one answer; an exception of it ends the iteration, after the answers that had come.
        window: requests under way at a time, at least 1.
        ended: whether no more are taken; those under way are waited for.
        client: open for as long as there are requests.
    """
    loop, waiting = asyncio.new_event_loop(), iter(requests)
    under_way: dict[asyncio.Task[Answer], Request] = {}
    stack = AsyncExitStack()
    try:
        if client is not None:
            loop.run_until_complete(stack.enter_async_context(client))
        while True:
            if not ended():
                for request in itertools.islice(waiting, window - len(under_way)):
                    under_way[loop.create_task(_awaited(ask(request)))] = request
            if not under_way:
                return
            done, _ = loop.run_until_complete(asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED))
            # In the order in which they were asked.
            finished = [task for task in under_way if task in done]
            for task in sorted(finished, key=lambda task: task.exception() is not None):
                yield under_way.pop(task), task.result()
    finally:
        loop.run_until_complete(_cancel(under_way))
        loop.run_until_complete(stack.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _awaited(answer: Awaitable[Answer]) -> Answer:
    return await answer
