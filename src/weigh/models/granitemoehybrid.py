"""GraniteMoeHybrid, as `transformers/models/granitemoehybrid/modeling_granitemoehybrid.py` (5.23) writes it.

GraniteMoE with Mamba 2 (on its slow path) in place of attention in most layers, and one MLP for every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.bamba import Mamba2HybridConfig
from weigh.models.common import FULL, Cache, CausalModel, RotaryEmbedding, create_causal_mask
from weigh.models.config import Count, Keys
from weigh.models.granitemoe import GraniteMoeMoE
from weigh.models.hybrid import (
    CONV,
    LINEAR,
    HybridForCausalLM,
    HybridModel,
    create_recurrent_attention_mask,
)
from weigh.models.llama import LlamaAttention
from weigh.models.mamba2 import Mamba2Mixer
from weigh.records import dataclass

MODEL_TYPES = ("granitemoehybrid",)


@dataclass(frozen=True)
class GraniteMoeHybridConfig(Mamba2HybridConfig):
    """The settings of `GraniteMoeHybridConfig` that shape memory; the multipliers do not."""

    num_local_experts: Count = 8
    num_experts_per_tok: Count = 2
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None

    aliases: ClassVar[Mapping[str, str]] = {"layers_block_type": "layer_types"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No losses of the routers."""
        super().settle(keys, found)
        keys.cannot_run("output_router_logits", "the routers' own loss")

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return LINEAR


class GraniteMoeHybridAttention(LlamaAttention):
    def rotate(self, query: Tensor, key: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor]:
        """Positions only where the config wants them."""
        if position_embeddings is None:
            return query, key
        return super().rotate(query, key, position_embeddings)


class GraniteMoeHybridMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GraniteMoeHybridConfig, dtype: DType) -> None:
        super().__init__()
        inner = config.shared_intermediate_size
        self.input_linear = nn.Linear(config.hidden_size, inner * 2, dtype)
        self.output_linear = nn.Linear(inner, config.hidden_size, dtype)
        self.activation = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.input_linear(hidden_states)
        chunked_hidden_states = hidden_states.split([hidden_states.shape[-1] // 2] * 2, -1)
        hidden_states = self.activation(chunked_hidden_states[0]) * chunked_hidden_states[1]
        hidden_states = self.output_linear(hidden_states)
        return hidden_states


class GraniteMoeHybridDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.has_experts = config.num_local_experts > 0
        if self.has_experts:
            self.block_sparse_moe = GraniteMoeMoE(config, dtype)
        self.shared_mlp = GraniteMoeHybridMLP(config, dtype)
        self.is_linear = config.layer_types[layer_idx] == LINEAR
        if self.is_linear:
            self.mamba = Mamba2Mixer(config, dtype)
        else:
            self.self_attn = GraniteMoeHybridAttention(config, dtype, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        positions: None,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        if self.is_linear:
            hidden_states = self.mamba(hidden_states, cache, mask)
        else:
            hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states * 0.22
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        if self.has_experts:
            moe_hidden_states = self.block_sparse_moe(hidden_states)
            hidden_states = moe_hidden_states + self.shared_mlp(hidden_states)
        else:
            hidden_states = self.shared_mlp(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        return hidden_states


class GraniteMoeHybridModel(HybridModel):
    layer_class = GraniteMoeHybridDecoderLayer

    def rotary(self, config: Any) -> Any:
        """None, unless positions are turned."""
        return RotaryEmbedding(config.head_dim) if config.position_embedding_type == "rope" else None

    def pass_on(self, text_positions: Tensor | None, positions: Tensor) -> None:
        """None."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Scaled."""
        inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = inputs_embeds * 12.0
        return inputs_embeds  # type: ignore[no-any-return]

    def causal_mask_mapping(
        self, inputs_embeds: Tensor, cache: Cache | None, positions: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Made without looking at the positions."""
        causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask)
        create_recurrent_attention_mask(inputs_embeds, attention_mask)
        return {FULL: causal_mask, LINEAR: None, CONV: None}

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, Any]:
        """None, unless positions are turned."""
        rotary_emb: nn.Module | None = self.rotary_emb
        found = rotary_emb(hidden_states, positions) if rotary_emb is not None else None
        return {FULL: found, LINEAR: found}


class GraniteMoeHybridForCausalLM(HybridForCausalLM):
    model_class = GraniteMoeHybridModel

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Scaled."""
        return logits / 8.0


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig.read(config, where), dtype)
