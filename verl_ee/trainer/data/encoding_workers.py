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
"""Parts that a worker has at a time."""


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
        workers: list[ActorHandle] = []
        encoder, limits = ray.put(self.encoder.encoder), self.encoder.limits
        # verl's placement groups hold the processors: a worker that asked for one would wait for ever.
        kind = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(PartEncoder)
        pending: deque[tuple[Part, ray.ObjectRef[EncodedPart]]] = deque()
        try:
            for index, part in enumerate(parts):
                if len(workers) < count:
                    workers.append(kind.remote(encoder, limits))
                if len(pending) == count * AHEAD:
                    yield self._result(*pending.popleft())
                pending.append((part, workers[index % count].encoded.remote(part)))
            while pending:
                yield self._result(*pending.popleft())
        finally:
            for worker in workers:
                ray.kill(worker)

    def _result(self, part: Part, reference: ray.ObjectRef[EncodedPart]) -> EncodedPart:
        """Return an encoded part; one whose worker failed is encoded here."""
        try:
            encoded: EncodedPart = ray.get(reference)
            return encoded
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, EarlyExperienceError):
                raise error.cause from None
            # A tokenizer with code of its own may not be known there.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            logger.warning(f"a worker could not encode a part ({reason}); it is encoded here")
            return self.encoder.encoded(part)
