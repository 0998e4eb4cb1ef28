"""The encoding of many rows in processes of their own, on every node of the cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.progress import plugin_logger
from verl_ee.objectives.files.example_tables import EncodedPart, Part, PartEncoder

logger = plugin_logger(__name__)
ALONE = 20.0
"""Seconds before processes are started: these take about as long to start."""
MOST_WORKERS = 64
AHEAD = 2
"""Parts that wait, besides the one that each worker has."""


@dataclass(frozen=True)
class _Pending:
    part: Part
    worker: ActorHandle
    result: ray.ObjectRef[EncodedPart]


@dataclass(frozen=True)
class EncodingWorkers:
    """Encodes parts in this process, and after a while in as many workers as the cluster has processors.

    Attributes:
        encoder: encodes one part after the other.
    """

    encoder: PartEncoder

    def __call__(self, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        """Yield each part, encoded, in the order of the parts.

        Raises:
            ExampleError: naming the row that the chat template cannot render.
        """
        began, remaining = time.monotonic(), iter(parts)
        for part in remaining:
            if time.monotonic() - began > ALONE:
                yield from self._in_workers(chain([part], remaining))
            else:
                yield self.encoder.encoded(part)

    def _in_workers(self, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        count = max(1, min(MOST_WORKERS, int(ray.cluster_resources().get("CPU", 1))))
        encoder, limits = ray.put(self.encoder.encoder), self.encoder.limits
        # verl's placement groups hold the processors: a worker that asked for one would wait for ever.
        kind = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(PartEncoder)
        workers: deque[ActorHandle] = deque()
        pending: deque[_Pending] = deque()
        try:
            for index, part in enumerate(parts):
                if index < count:
                    workers.appendleft(kind.remote(encoder, limits))
                while len(pending) >= (count + AHEAD if workers else 1):
                    yield self._result(pending.popleft(), workers)
                if workers:
                    pending.append(_Pending(part, workers[0], workers[0].encoded.remote(part)))
                    workers.rotate(-1)
                else:
                    yield self.encoder.encoded(part)
            while pending:
                yield self._result(pending.popleft(), workers)
        finally:
            for worker in workers:
                ray.kill(worker)

    def _result(self, pending: _Pending, workers: deque[ActorHandle]) -> EncodedPart:
        """Return an encoded part; one whose worker failed is encoded here, and the worker gets no other."""
        try:
            encoded: EncodedPart = ray.get(pending.result)
            return encoded
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, EarlyExperienceError):
                raise error.cause from None
            if pending.worker in workers:
                workers.remove(pending.worker)
                ray.kill(pending.worker)
                # A tokenizer with code of its own may not be known there.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                logger.warning(f"a worker could not encode a part ({reason}); {len(workers)} workers go on")
            return self.encoder.encoded(pending.part)
