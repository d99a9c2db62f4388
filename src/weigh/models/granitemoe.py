"""GraniteMoE, as `transformers/models/granitemoe/modeling_granitemoe.py` (5.23) writes it.

Granite with a mixture of experts, of which only the chosen ones' scores go through a softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.experts import Experts
from weigh.models.granite import GraniteForCausalLM, GraniteModel
from weigh.models.llama import LlamaDecoderLayer
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("granitemoe",)


@dataclass(frozen=True)
class GraniteMoeConfig(MoeConfig):
    """The settings of `GraniteMoeConfig` that shape memory; the multipliers do not."""

    attention_bias: bool = False
    num_local_experts: int = 8
    num_experts_per_tok: int = 2


class GraniteMoeTopKRouter(nn.Module):
    def __init__(self, config: GraniteMoeConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.parameter((config.num_local_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight).float()
        top_k_logits, top_k_index = ops.topk(router_logits, self.top_k)
        top_k_weights = ops.softmax(top_k_logits).to(hidden_states.dtype)
        return router_logits, top_k_weights, top_k_index


class GraniteMoeMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: GraniteMoeConfig, dtype: DType) -> None:
        super().__init__()
        self.router = GraniteMoeTopKRouter(config, dtype)
        width, inner = config.hidden_size, config.intermediate_size
        self.experts = Experts(
            config.num_local_experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype
        )

    def forward(self, layer_input: Tensor) -> Tensor:
        bsz, length, emb_size = layer_input.shape
        hidden_states = layer_input.reshape(-1, emb_size)
        _, top_k_weights, top_k_index = self.router(hidden_states)
        layer_output = self.experts(hidden_states, top_k_index, top_k_weights)
        return layer_output.view(bsz, length, emb_size)  # type: ignore[no-any-return]


class GraniteMoeDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        self.input_layernorm = self.norm_class(config.hidden_size, dtype)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, dtype)
        self.block_sparse_moe = GraniteMoeMoE(config, dtype)

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
        hidden_states = self.block_sparse_moe(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        return hidden_states


class GraniteMoeModel(GraniteModel):
    layer_class: ClassVar[type[Any]] = GraniteMoeDecoderLayer

    def embed(self, input_ids: Tensor) -> Tensor:
        """Not scaled yet."""
        return self.embed_tokens(input_ids)  # type: ignore[no-any-return]

    def enter(self, inputs_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled, under the same name: here after the masks are made, in Granite before."""
        inputs_embeds = inputs_embeds * 12.0
        return inputs_embeds, inputs_embeds


class GraniteMoeForCausalLM(GraniteForCausalLM):
    model_class: ClassVar[type[GraniteModel]] = GraniteMoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GraniteMoeForCausalLM(GraniteMoeConfig.read(config, where), dtype)
