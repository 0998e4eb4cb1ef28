"""The names of verl, vLLM and Megatron that verl_ee relies on, and checks that the installed ones still fit."""

from verl_ee.trainer.checks.accelerator import machine_problems
from verl_ee.trainer.cpu import active
from verl_ee.trainer.upstream.checks import conflicts, problem_with, registered, versions
from verl_ee.trainer.upstream.names import MEGATRON_NAMES, NAMES, ROLLOUT_NAMES, VLLM_NAMES, UpstreamName

__all__ = [
    "MEGATRON_NAMES",
    "NAMES",
    "ROLLOUT_NAMES",
    "VLLM_NAMES",
    "UpstreamName",
    "active",
    "conflicts",
    "machine_problems",
    "problem_with",
    "registered",
    "versions",
]
