"""The one loss of mid-training.

Loss = sum of weight x negative log-likelihood over the learned tokens / number of learned tokens in the global
mini-batch (equations 1 and 3 of the paper, as a token mean). A micro-batch contributes its share of the sum, so the
result does not depend on how a mini-batch is split over micro-batches and workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, get_args

import torch

from verl_ee.config.models import Objective

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
"""The objectives, in the order of their indices in the `objective` tensor of a batch."""


class NestedTensor(Protocol):
    """A jagged tensor of torch, one row per example.

    Its own type has no `offsets`.
    """

    def offsets(self) -> torch.Tensor:
        """Return where each row begins among the values, and where the last ends."""

    def values(self) -> torch.Tensor:
        """Return the tokens of all rows, one after the other."""


class MiniBatch(TypedDict):
    """The part of verl's batch that the loss reads.

    Attributes:
        input_ids: nested (batch, tokens).
        loss_mask: nested (batch, tokens), 1 for a token that is learned.
        example_weight: (batch,).
        objective: (batch,), index in `OBJECTIVES`.
        batch_num_tokens: learned tokens in the global mini-batch.
        dp_size: workers over which the mini-batch is split.
    """

    input_ids: NestedTensor
    loss_mask: NestedTensor
    example_weight: torch.Tensor
    objective: torch.Tensor
    batch_num_tokens: float
    dp_size: int


class ModelOutput(TypedDict):
    """The output of an engine's forward pass.

    Attributes:
        log_probs: nested (batch, tokens), each of the token that follows.
        likeliest: nested (batch, tokens), the likeliest token that follows; missing if no logits were seen.
    """

    log_probs: NestedTensor
    likeliest: NotRequired[NestedTensor]


LossAndMetrics = tuple[torch.Tensor, dict[str, float]]


class SupervisedLoss:
    """Loss function of the supervised stages, in the form that verl's engines call.

    An engine calls it twice per micro-batch: with `student_logits` while the logits exist, for outputs that need them,
    and with `model_output` for the loss.
    """

    def __init__(self, vocabulary_group: ProcessGroup | None = None) -> None:
        """Prepare the loss.

        Args:
            vocabulary_group: group over which an engine splits the vocabulary, in the order of its ranks; None if
                every worker has all of it.
        """
        self._group = vocabulary_group

    def __call__(
        self,
        model_output: ModelOutput | None = None,
        data: MiniBatch | None = None,
        dp_group: ProcessGroup | None = None,
        student_logits: torch.Tensor | None = None,
        **_: object,
    ) -> LossAndMetrics | dict[str, torch.Tensor]:
        """Return the loss and its metrics, or per-token outputs if `student_logits` is given.

        Args:
            model_output: output of the model for the micro-batch.
            data: the micro-batch, a TensorDict.
            dp_group: unused, the engine has reduced `batch_num_tokens` over it already.
            student_logits: (rows, tokens, vocabulary), padded or packed however the engine likes; it brings the
                returned outputs into the form of `model_output`.

        Raises:
            ValueError: for a mini-batch without a learned token, or a call without anything to compute from.
        """
        if student_logits is not None:
            return {"likeliest": likeliest(student_logits, self._group)}
        if model_output is None or data is None:
            raise ValueError("The loss was called without logits, and without the output of the model and its data.")
        return loss_and_metrics(model_output, data)


def likeliest(logits: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """Return the likeliest next token at each position, (rows, tokens).

    Args:
        logits: (rows, tokens, vocabulary), or this worker's slice of the vocabulary.
        group: group whose ranks have the slices, of equal size; None: there is one.
    """
    with torch.no_grad():
        value, token = logits.max(dim=-1)
        if group is None or group.size() == 1:
            return token
        token += group.rank() * logits.shape[-1]
        best = _gathered(value.float(), group).argmax(dim=0, keepdim=True)
        return _gathered(token, group).gather(0, best)[0]


def _gathered(value: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    parts = [torch.empty_like(value) for _ in range(group.size())]
    torch.distributed.all_gather(parts, value.contiguous(), group=group)
    return torch.stack(parts)


def loss_and_metrics(model_output: ModelOutput, data: MiniBatch) -> LossAndMetrics:
    """Return this micro-batch's share of the loss, and sums per objective.

    Metrics are sums, `sums/<objective>/<nll|correct|tokens>`: only sums can be added over micro-batches and workers.

    Raises:
        ValueError: for a mini-batch without a learned token.
    """
    token_count = data["batch_num_tokens"]
    if token_count <= 0:
        raise ValueError("A mini-batch has no learned token.")
    lengths = data["loss_mask"].offsets().diff()
    # A log-probability belongs to the token before the one that it predicts; a first token is never learned, so
    # rolling over the borders of the examples is safe.
    learned = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0).bool()
    nll = -model_output["log_probs"].values().float()
    weight = torch.repeat_interleave(data["example_weight"].to(nll.device), lengths.to(nll.device))
    loss = (nll * weight)[learned].sum() / token_count * data["dp_size"]

    objective = torch.repeat_interleave(data["objective"].to(nll.device), lengths.to(nll.device))
    correct = None
    if "likeliest" in model_output:
        following = torch.roll(data["input_ids"].values(), shifts=-1, dims=0)
        correct = model_output["likeliest"].values() == following
    metrics: dict[str, float] = {}
    for index, name in enumerate(OBJECTIVES):
        of_objective = learned & (objective == index)
        metrics[f"sums/{name}/tokens"] = float(of_objective.sum().item())
        metrics[f"sums/{name}/nll"] = float(nll.detach()[of_objective].sum().item())
        if correct is not None:
            metrics[f"sums/{name}/correct"] = float(correct[of_objective].sum().item())
    return loss, metrics


def mean_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Turn summed metrics of a mini-batch into means per objective.

    Args:
        sums: metrics of `loss_and_metrics`, added over micro-batches and workers.

    Returns:
        `<objective>/loss` (nats per token), `<objective>/token_accuracy` and `<objective>/tokens`, for the
        objectives that had a learned token.
    """
    result: dict[str, float] = {}
    for name in OBJECTIVES:
        tokens = sums.get(f"sums/{name}/tokens", 0.0)
        if not tokens:
            continue
        result[f"{name}/loss"] = sums[f"sums/{name}/nll"] / tokens
        if f"sums/{name}/correct" in sums:
            result[f"{name}/token_accuracy"] = sums[f"sums/{name}/correct"] / tokens
        result[f"{name}/tokens"] = tokens
    return result
