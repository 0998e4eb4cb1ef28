"""The one loss of mid-training.

Loss = sum of weight x negative log-likelihood over the learned tokens / number of learned tokens in the global
mini-batch (equations 1 and 3 of the paper, as a token mean). A micro-batch contributes its share of the sum, so the
result does not depend on how a mini-batch is split over micro-batches and workers.
"""

from __future__ import annotations

from typing import Any

import torch

OBJECTIVES = ("world_model", "imitation", "reflection")
"""Index of each objective in the `objective` tensor of a batch."""


class SupervisedLoss:
    """Loss function of the supervised stages, in the form that verl's engines call.

    An engine calls it twice per micro-batch: with `student_logits` while the logits exist, for what needs them, and
    with `model_output` for the loss.
    """

    def __init__(self, vocabulary_group: Any = None) -> None:
        """Prepare the loss.

        Args:
            vocabulary_group: torch process group over which an engine splits the vocabulary, in the order of its ranks;
                None if every worker has all of it.
        """
        self._group = vocabulary_group

    def __call__(
        self,
        model_output: dict[str, Any] | None = None,
        data: Any = None,
        dp_group: Any = None,
        student_logits: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return the loss and its metrics, or per-token outputs if `student_logits` is given.

        Args:
            model_output: nested (batch, tokens): `log_probs`, each of the token that follows, and `likeliest`.
            data: `input_ids` and `loss_mask`, nested (batch, tokens); `example_weight` and `objective`, (batch,);
                `batch_num_tokens`, learned tokens in the global mini-batch; `dp_size`.
            dp_group: unused, the engine has reduced `batch_num_tokens` over it already.
            student_logits: (rows, tokens, vocabulary), padded or packed however the engine likes; it brings what is
                returned into the form of `model_output`.
        """
        if student_logits is not None:
            return {"likeliest": likeliest(student_logits, self._group)}
        return loss_and_metrics(model_output or {}, data)


def likeliest(logits: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Return the likeliest next token at each position, (rows, tokens).

    Args:
        logits: (rows, tokens, vocabulary), or this worker's slice of the vocabulary.
        group: torch process group whose ranks have the slices, of equal size; None: there is one.
    """
    with torch.no_grad():
        value, token = logits.max(dim=-1)
        if group is None or group.size() == 1:
            return token
        token += group.rank() * logits.shape[-1]
        best = _gathered(value.float(), group).argmax(dim=0, keepdim=True)
        return _gathered(token, group).gather(0, best)[0]


def _gathered(value: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(value) for _ in range(group.size())]
    torch.distributed.all_gather(parts, value.contiguous(), group=group)
    return torch.stack(parts)


def loss_and_metrics(model_output: dict[str, Any], data: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return this micro-batch's share of the loss, and sums per objective.

    Metrics are sums, `sums/<objective>/<nll|correct|tokens>`: only sums can be added over micro-batches and workers.

    Raises:
        ValueError: for a mini-batch without a learned token.
    """
    tokens = data["batch_num_tokens"]
    if tokens <= 0:
        raise ValueError("A mini-batch has no learned token.")
    lengths = data["loss_mask"].offsets().diff()
    # A log-probability belongs to the token before the one that it predicts; a first token is never learned, so
    # rolling over the borders of the examples is safe.
    learned = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0).bool()
    nll = -model_output["log_probs"].values().float()
    weight = torch.repeat_interleave(data["example_weight"].to(nll.device), lengths.to(nll.device))
    loss = (nll * weight)[learned].sum() / tokens * data["dp_size"]

    objective = torch.repeat_interleave(data["objective"].to(nll.device), lengths.to(nll.device))
    following = torch.roll(data["input_ids"].values(), shifts=-1, dims=0)
    hits = model_output["likeliest"].values() == following if "likeliest" in model_output else None
    metrics: dict[str, Any] = {}
    for index, name in enumerate(OBJECTIVES):
        chosen = learned & (objective == index)
        metrics[f"sums/{name}/tokens"] = float(chosen.sum().item())
        metrics[f"sums/{name}/nll"] = float(nll.detach()[chosen].sum().item())
        if hits is not None:
            metrics[f"sums/{name}/correct"] = float(hits[chosen].sum().item())
    return loss, metrics


def mean_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Turn summed metrics of a mini-batch into means per objective.

    Args:
        sums: `sums/<objective>/<what>`, added over micro-batches and workers.

    Returns:
        `<objective>/loss` (nats per token), `<objective>/token_accuracy` and `<objective>/tokens`, for the
        objectives that had a learned token.
    """
    result: dict[str, float] = {}
    for name in OBJECTIVES:
        tokens = sums.get(f"sums/{name}/tokens", 0.0)
        if tokens:
            result[f"{name}/loss"] = sums[f"sums/{name}/nll"] / tokens
            if f"sums/{name}/correct" in sums:
                result[f"{name}/token_accuracy"] = sums[f"sums/{name}/correct"] / tokens
            result[f"{name}/tokens"] = tokens
    return result
