"""GLM-4, as `transformers/models/glm4/modeling_glm4.py` (5.23) writes it: GLM that also norms after both parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.glm import GlmConfig, GlmDecoderLayer, GlmForCausalLM, GlmModel
from weigh.models.llama import DecoderConfig

MODEL_TYPES = ("glm4",)


class Glm4DecoderLayer(GlmDecoderLayer):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.post_self_attn_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_mlp_layernorm = nn.RMSNorm(config.hidden_size, dtype)

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
        hidden_states = self.post_self_attn_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_mlp_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class Glm4Model(GlmModel):
    layer_class = Glm4DecoderLayer


class Glm4ForCausalLM(GlmForCausalLM):
    model_class = Glm4Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Glm4ForCausalLM(GlmConfig.read(config, where), dtype)
