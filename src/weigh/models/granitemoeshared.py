"""GraniteMoE with an expert that every token passes through.

As `transformers/models/granitemoeshared/modeling_granitemoeshared.py` (5.23) writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Count
from weigh.models.granitemoe import GraniteMoeConfig, GraniteMoeDecoderLayer, GraniteMoeForCausalLM, GraniteMoeModel
from weigh.records import dataclass

MODEL_TYPES = ("granitemoeshared",)


@dataclass(frozen=True)
class GraniteMoeSharedConfig(GraniteMoeConfig):
    """The settings of `GraniteMoeSharedConfig` that shape memory."""

    shared_intermediate_size: Count = 0


class GraniteMoeSharedMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GraniteMoeSharedConfig, dtype: DType) -> None:
        super().__init__()
        self.activation = nn.Activation(config.hidden_act)
        self.input_linear = nn.Linear(config.hidden_size, config.shared_intermediate_size * 2, dtype)
        self.output_linear = nn.Linear(config.shared_intermediate_size, config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.input_linear(hidden_states)
        chunked_hidden_states = hidden_states.split(hidden_states.shape[-1] // 2, -1)
        hidden_states = self.activation(chunked_hidden_states[0]) * chunked_hidden_states[1]
        hidden_states = self.output_linear(hidden_states)
        return hidden_states


class GraniteMoeSharedDecoderLayer(GraniteMoeDecoderLayer):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.shared_mlp = GraniteMoeSharedMLP(config, dtype) if config.shared_intermediate_size else None

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
        moe_hidden_states = self.block_sparse_moe(hidden_states)
        if self.shared_mlp is None:
            hidden_states = moe_hidden_states
        else:
            hidden_states = moe_hidden_states + self.shared_mlp(hidden_states)
        hidden_states = residual + hidden_states * 0.22
        return hidden_states


class GraniteMoeSharedModel(GraniteMoeModel):
    layer_class: ClassVar[type[Any]] = GraniteMoeSharedDecoderLayer


class GraniteMoeSharedForCausalLM(GraniteMoeForCausalLM):
    model_class: ClassVar[type[GraniteMoeModel]] = GraniteMoeSharedModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GraniteMoeSharedForCausalLM(GraniteMoeSharedConfig.read(config, where), dtype)
