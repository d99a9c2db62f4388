"""Granite, as `transformers/models/granite/modeling_granite.py` (5.23) writes it.

Llama whose embeddings, residuals, scores and logits are scaled by numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.llama import DecoderConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("granite",)


@dataclass(frozen=True)
class GraniteConfig(DecoderConfig):
    """The settings of `GraniteConfig` that shape memory; the multipliers do not."""

    attention_bias: bool = False
    mlp_bias: bool = False


class GraniteDecoderLayer(LlamaDecoderLayer):
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
        hidden_states = residual + hidden_states * 0.22
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        return hidden_states


class GraniteModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = GraniteDecoderLayer

    def embed(self, input_ids: Tensor) -> Tensor:
        """Scaled."""
        inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = inputs_embeds * 12.0
        return inputs_embeds  # type: ignore[no-any-return]


class GraniteForCausalLM(LlamaForCausalLM):
    model_class = GraniteModel

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Scaled."""
        return logits / 8.0


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GraniteForCausalLM(GraniteConfig.read(config, where), dtype)
