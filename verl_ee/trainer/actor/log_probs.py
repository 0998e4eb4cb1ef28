"""Log-probabilities of tokens where flash attention's kernel for them is missing."""

from __future__ import annotations

from types import ModuleType

import torch
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Tokens at a time: 310 MB of float32 for a vocabulary of 152 thousand."""


def log_probs_in_chunks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities in float32, with no more memory than the logits and a chunk.

    verl's own way without the kernel is a Python loop over rows, which are tokens where padding is removed, and keeps a
    second tensor of the size of the logits.

    Args:
        logits: (..., vocabulary).
        labels: (...), the token whose log-probability is taken.
    """
    rows, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    chunks = zip(rows.split(CHUNK), wanted.split(CHUNK), strict=True)
    if logits.requires_grad and torch.is_grad_enabled():
        # Computed again in the backward pass, in place of what would be kept until then.
        parts = [checkpoint(_log_probs, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [_log_probs(*chunk) for chunk in chunks]
    return torch.cat(parts).view(labels.shape)


def replace_row_loop(module: ModuleType) -> None:
    """Let verl compute log-probabilities in chunks.

    Args:
        module: `verl.utils.torch_functional`.
    """
    module.logprobs_from_logits_v2 = log_probs_in_chunks  # type: ignore[attr-defined]


def _log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    values = logits.float()
    return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - values.logsumexp(-1)
