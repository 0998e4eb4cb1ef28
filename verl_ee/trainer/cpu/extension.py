"""The vLLM worker's side of a weight sync."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from verl_ee.errors import UpstreamError

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

HEAD = "lm_head.weight"


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """Loads new weights through vLLM's own reload, which undoes and redoes the packing of linear weights."""

    def update_weights_from_ipc(
        self, peft_config: Mapping[str, object] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive every bucket, then reload the model.

        Raises:
            UpstreamError: for a LoRA adapter, which vLLM's CPU build does not take here.
        """
        if peft_config:
            raise UpstreamError(
                "LoRA adapters are not sent to vLLM's CPU build. Set actor_rollout_ref.model.lora.merge=True."
            )
        self.device = torch.device("cpu")
        weights: list[tuple[str, torch.Tensor]] = []

        def keep(bucket: list[tuple[str, torch.Tensor]], _: bool) -> None:
            # On a CPU the tensors are views of the shared segment, which cannot be closed while they live.
            weights.extend((name, tensor.clone()) for name, tensor in bucket)
            bucket.clear()

        BucketedWeightReceiver(self._get_zmq_handle(), self.device, use_shm).receive_weights(keep)
        self.model_runner.reload_weights(weights_iterator=iter([*weights, *_tied_head(self.model_runner, weights)]))


def _tied_head(runner: GPUModelRunner, weights: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Return the weight of an output layer that shares the embedding's, where it was not sent.

    On a CPU that layer is packed apart from the embedding, so it would keep what it had.
    """
    if not runner.model_config.hf_text_config.tie_word_embeddings or HEAD in dict(weights):
        return []
    return [(HEAD, value) for name, value in weights if name.endswith("embed_tokens.weight")]
