"""The names of verl, vLLM and Megatron that verl_ee relies on are what it relies on."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from verl_ee.trainer.upstream import (
    MEGATRON_NAMES,
    NAMES,
    ROLLOUT_NAMES,
    VLLM_NAMES,
    UpstreamName,
    problem_with,
    versions,
)


@pytest.mark.parametrize("name", NAMES + ROLLOUT_NAMES + VLLM_NAMES, ids=str)
def test_upstream_name_is_as_relied_on(name: UpstreamName) -> None:
    assert problem_with(name) == ""


def test_a_name_that_differs_is_reported() -> None:
    assert "has no 'gone'" in problem_with(UpstreamName("json", "gone"))
    assert "takes no sideways" in problem_with(UpstreamName("shutil", "which", ("sideways",)))
    assert "cannot be imported" in problem_with(UpstreamName("verl.gone", "x"))


@pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")
@pytest.mark.parametrize("name", MEGATRON_NAMES, ids=str)
def test_name_of_megatron_is_as_relied_on(name: UpstreamName) -> None:
    assert problem_with(name) == ""


def test_versions_are_those_that_are_installed() -> None:
    installed = versions()
    assert installed["verl"].startswith("0.9.")
    assert all(installed.values())
