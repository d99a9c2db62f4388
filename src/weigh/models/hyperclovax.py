"""HyperCLOVA X, as `transformers/models/hyperclovax/modeling_hyperclovax.py` (5.23) writes it.

Granite that may norm after attention and MLP too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.granite import GraniteConfig, GraniteForCausalLM, GraniteModel
from weigh.models.llama import LlamaDecoderLayer
from weigh.records import dataclass

MODEL_TYPES = ("hyperclovax",)


@dataclass(frozen=True)
class HyperCLOVAXConfig(GraniteConfig):
    """The settings of `HyperCLOVAXConfig` that shape memory."""

    use_post_norm: bool = True

    heads_divide_width = True


class HyperCLOVAXDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.post_norm1 = nn.RMSNorm(config.hidden_size, dtype) if config.use_post_norm else None
        self.post_norm2 = nn.RMSNorm(config.hidden_size, dtype) if config.use_post_norm else None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        if self.post_norm1 is not None:
            hidden_states = self.post_norm1(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        if self.post_norm2 is not None:
            hidden_states = self.post_norm2(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        return hidden_states


class HyperCLOVAXModel(GraniteModel):
    layer_class = HyperCLOVAXDecoderLayer


class HyperCLOVAXForCausalLM(GraniteForCausalLM):
    model_class = HyperCLOVAXModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return HyperCLOVAXForCausalLM(HyperCLOVAXConfig.read(config, where), dtype)
