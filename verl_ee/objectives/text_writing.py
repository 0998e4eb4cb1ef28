"""Texts that somebody writes about what was executed: asked for once, kept in parts, and put together at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from tqdm import tqdm

from verl_ee.errors import ExampleError
from verl_ee.experience.files.parquet import read_table, write_table
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.prompts.text import Message

BATCH = 64
"""Texts asked for together; what a killed run loses at most."""
BAR_SECONDS = 5.0


class TextRequest(Protocol):
    """What a text is asked for: a situation that needs a rationale, a transition that needs a summary."""

    @property
    def prompt(self) -> list[Message]:
        """Chat messages that ask a language model for the text."""


_Request = TypeVar("_Request")
_Request_contra = TypeVar("_Request_contra", contravariant=True)


class TextWriter(Protocol[_Request_contra]):
    """Writes one text per request. A language model reads nothing of a request but its `prompt`; a rule may read all.

    Attributes:
        name: kept with every text.
        stop: why it wrote no more, if it left any request out.
    """

    name: str
    stop: ExampleError | None

    def write(self, requests: Sequence[_Request_contra], /) -> Sequence[str | None]:
        """Return a text for each request, in order.

        It is empty where the writer had nothing to say or was cut off, and None where it was not asked any more.
        """


def ask_writer(requests: Sequence[_Request], writer: TextWriter[_Request]) -> list[tuple[_Request, str]]:
    """Return what a writer gave, without the white space around it; a request that it left out is not there.

    Raises:
        ExampleError: if it gave another number of texts than it was asked for.
    """
    texts = writer.write(requests)
    if len(texts) != len(requests):
        raise ExampleError(f"Writer {writer.name!r} gave {len(texts)} texts for {len(requests)} requests.")
    return [(request, text.strip()) for request, text in zip(requests, texts, strict=True) if text is not None]


def write_missing_texts(
    path: Path,
    schema: pa.Schema,
    keys: Sequence[str],
    requests: Sequence[_Request],
    writer: TextWriter[_Request],
    row: Callable[[_Request, str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Have a text written for every request that has none yet, and write them all as one file.

    Args:
        path: of the file; parts that a killed run left beside it are taken up, and so is the file itself.
        schema: of its rows.
        keys: columns that tell requests apart, each an attribute of a request as well.
        requests: all of them.
        writer: of the texts.
        row: makes the row of a request and its text.

    Returns:
        The rows, in the order of the requests.

    Raises:
        ExampleError: if the writer stopped; what it wrote before is kept.
        StoreError: if a file of an earlier run cannot be read.
    """
    parts = PartFiles(path.with_suffix(".parts"), schema)
    before = read_table(path, schema) if path.exists() else []
    done = {tuple(item[key] for key in keys): item for item in [*before, *parts.read()]}
    places = [tuple(getattr(request, key) for key in keys) for request in requests]
    left = [request for request, place in zip(requests, places, strict=True) if place not in done]
    with tqdm(
        total=len(requests), initial=len(requests) - len(left), desc=path.stem, unit="text", mininterval=BAR_SECONDS
    ) as bar:
        for start in range(0, len(left), BATCH):
            rows = [row(request, text) for request, text in ask_writer(left[start : start + BATCH], writer)]
            parts.write(rows)
            done |= {tuple(item[key] for key in keys): item for item in rows}
            bar.update(len(rows))
            if writer.stop is not None:
                rest = sum(place not in done for place in places)
                raise ExampleError(f"{writer.stop} {rest} of {len(places)} texts are not written yet.")
    result = [done[place] for place in places]
    write_table(path, result, schema, {})
    shutil.rmtree(parts.folder, ignore_errors=True)
    return result
