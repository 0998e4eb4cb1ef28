"""The name under which vLLM's CPU build is found."""

from __future__ import annotations

import importlib.metadata


def test_the_cpu_build_answers_to_the_name_vllm() -> None:
    assert importlib.metadata.version("vllm").endswith("+cpu")
