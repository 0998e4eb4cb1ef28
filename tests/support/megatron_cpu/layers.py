"""A Megatron model of local layers: attention, norms, and the names of their weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

MODELS = ("qwen2", "qwen3", "llama")


def register_bridges() -> None:
    """Register, in mbridge's own registry, bridges whose models need no TransformerEngine."""
    from mbridge.core.bridge import _MODEL_REGISTRY, register_model

    for model in MODELS:
        register_model(model)(_local(_MODEL_REGISTRY[model]))


def _local(bridge: Any) -> Any:
    """Return a bridge that builds local layers."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    class LocalBridge(bridge):
        # TransformerEngine fuses these norms into the layer behind them, and names them after it.
        _OTHER_MAPPING = bridge._OTHER_MAPPING | {
            "input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"]
        }
        _MLP_MAPPING = bridge._MLP_MAPPING | {
            "pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"]
        }
        # A bridge of a model with tied embeddings writes into its class.
        _DIRECT_MAPPING: ClassVar[dict[str, str]] = dict(bridge._DIRECT_MAPPING)

        def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
            self.has_vp_stage = True
            return _with_local_layers(
                get_gpt_decoder_block_spec(self.config, False, normalization="RMSNorm", vp_stage=vp_stage)
            )

        def _model_provider(self, callbacks: list[Callable[..., None]]) -> Callable[..., Any]:
            stock = super()._model_provider(callbacks)

            def provide(*arguments: Any, **named: Any) -> Any:
                model = stock(*arguments, **named)
                model.cuda = lambda *_: model
                return model

            return provide

    return LocalBridge


def _with_local_layers(block: Any) -> Any:
    from megatron.core.transformer.identity_op import IdentityOp

    norm, attention = _norm(), _attention()
    block.layer_norm = norm
    for layer in block.layer_specs:
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = norm
        inner = parts.self_attention.submodules
        inner.core_attention = attention
        if inner.q_layernorm is not IdentityOp:
            inner.q_layernorm = inner.k_layernorm = norm
    return block


def _norm() -> type:
    import torch

    class LocalRMSNorm(torch.nn.RMSNorm):
        """RMSNorm whose gradient Megatron adds up over a sequence that is split over tensor-parallel ranks."""

        def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
            super().__init__(hidden_size, eps=eps)
            self.weight.sequence_parallel = config.sequence_parallel

    return LocalRMSNorm


def _attention() -> type:
    import torch
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from torch.nn.functional import scaled_dot_product_attention

    class LocalAttention(DotProductAttention):
        """Causal attention over rows that are padded on the right, or packed."""

        def forward(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            packed_seq_params: Any = None,
            **_: Any,
        ) -> torch.Tensor:
            """Return (tokens, rows, heads * width), or (tokens, heads, width) of packed rows."""

            def attend(*parts: torch.Tensor) -> torch.Tensor:
                return scaled_dot_product_attention(*parts, is_causal=True, scale=self.softmax_scale, enable_gqa=True)

            if packed_seq_params is None:
                # (tokens, rows, heads, width); behind a causal mask no learned token sees padding on the right.
                output = attend(*(part.permute(1, 2, 0, 3) for part in (query, key, value)))
                return output.permute(2, 0, 1, 3).flatten(2)
            borders = packed_seq_params.cu_seqlens_q_padded.tolist()
            rows = []
            for start, end in itertools.pairwise(borders):
                row = attend(*(part[start:end].transpose(0, 1)[None] for part in (query, key, value)))
                rows.append(row[0].transpose(0, 1))
            return torch.cat(rows)

    return LocalAttention
