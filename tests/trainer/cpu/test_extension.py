"""The vLLM worker's side of a weight sync on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl_ee.errors import UpstreamError
from verl_ee.trainer.cpu import extension


@pytest.mark.parametrize(
    ("tied", "sent", "loaded"),
    [
        (True, {"model.embed_tokens.weight": 1.0, "model.norm.weight": 2.0}, {"lm_head.weight": 1.0}),
        (True, {"model.embed_tokens.weight": 1.0, "lm_head.weight": 1.0}, {}),
        (False, {"model.embed_tokens.weight": 1.0, "lm_head.weight": 3.0}, {}),
    ],
)
def test_an_output_layer_that_shares_the_embedding_is_reloaded_too(
    monkeypatch: pytest.MonkeyPatch, tied: bool, sent: dict[str, float], loaded: dict[str, float]
) -> None:
    class Receiver:
        def __init__(self, *_: Any) -> None:
            pass

        def receive_weights(self, on_bucket: Any) -> None:
            on_bucket([(name, torch.tensor([value])) for name, value in sent.items()], True)

    reloaded: dict[str, float] = {}
    runner = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=tied)),
        reload_weights=lambda weights_iterator: reloaded.update(
            {name: float(value) for name, value in weights_iterator}
        ),
    )
    worker: Any = SimpleNamespace(model_runner=runner, _get_zmq_handle=lambda: "")
    monkeypatch.setattr(extension, "BucketedWeightReceiver", Receiver)
    extension.CpuWorkerExtension.update_weights_from_ipc(worker)
    assert reloaded == sent | loaded


def test_an_adapter_is_refused_by_the_server_too() -> None:
    worker: Any = SimpleNamespace()
    with pytest.raises(UpstreamError, match=r"Set actor_rollout_ref\.model\.lora\.merge=True"):
        extension.CpuWorkerExtension.update_weights_from_ipc(worker, {"r": 8})
