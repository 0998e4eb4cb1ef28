"""Log-probabilities in chunks: verl's values and gradients, and less memory than its loop over rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from verl.utils.torch_functional import logprobs_from_logits_naive

from verl_ee.trainer.actor import log_probs
from verl_ee.trainer.actor.log_probs import log_probs_in_chunks

TOKENS, VOCABULARY = 70, 300


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "CHUNK", 16)


def drawn(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = (8 * torch.randn(*shape, VOCABULARY, generator=generator)).to(dtype)
    return logits.requires_grad_(), torch.randint(0, VOCABULARY, shape, generator=generator)


@pytest.mark.parametrize("shape", [(TOKENS,), (2, 35), (1, 3), (16,)])
def test_values_and_gradients_are_those_of_the_plain_formula(shape: tuple[int, ...]) -> None:
    logits, labels = drawn(torch.float32, *shape)
    expected = logprobs_from_logits_naive(logits.detach().double().requires_grad_(), labels)
    result = log_probs_in_chunks(logits, labels)
    assert result.shape == labels.shape
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
    weights = torch.arange(1.0, labels.numel() + 1).view(labels.shape)
    (result * weights).sum().backward()
    reference = logits.detach().double().requires_grad_()
    (logprobs_from_logits_naive(reference, labels) * weights).sum().backward()
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)


def kept_bytes(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype) -> int:
    """Return the bytes that a function keeps for the backward pass, each storage once."""
    logits, labels = drawn(dtype, TOKENS)
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(logits, labels)
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_size_of_the_logits_is_kept_beside_them(dtype: torch.dtype) -> None:
    size = TOKENS * VOCABULARY * dtype.itemsize
    assert kept_bytes(log_probs_in_chunks, dtype) < 1.1 * size
    assert kept_bytes(logprobs_from_logits_naive, dtype) >= size


def test_bfloat16_is_computed_in_float32() -> None:
    logits, labels = drawn(torch.bfloat16, TOKENS)
    exact = logprobs_from_logits_naive(logits.detach().double(), labels)
    assert float((log_probs_in_chunks(logits, labels).double() - exact).abs().max().detach()) < 1e-5


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VERL_EE": "1"}, "log_probs_in_chunks"),
        ({"VERL_EE": "1", "VERL_PLATFORM": "cpu"}, "logprobs_from_logits_naive"),
        ({}, "logprobs_from_logits_v2"),
    ],
)
def test_verl_uses_them_in_a_job_with_the_flag_and_without_the_kernel(
    environment: dict[str, str], expected: str
) -> None:
    program = "import verl, verl.utils.torch_functional as f; print(f.logprobs_from_logits_v2.__name__)"
    env = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"} | environment
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1] == expected, done.stderr
