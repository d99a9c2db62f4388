"""DeepSeek-V3.2, as `transformers/models/deepseek_v32/modeling_deepseek_v32.py` (5.23) writes it; counted, not run.

DeepSeek-V3 with an indexer in every layer, which picks the tokens that attention looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3DecoderLayer,
    DeepseekV3ForCausalLM,
    DeepseekV3Model,
    LatentConfig,
    latent_cache,
)
from weigh.models.glm4_moe import Glm4MoeMoE
from weigh.models.sparse import first_dense
from weigh.records import dataclass

MODEL_TYPES = ("deepseek_v32",)


@dataclass(frozen=True)
class DeepseekV32Config(LatentConfig):
    """The settings of `DeepseekV32Config` that shape memory."""

    q_lora_rank: int = 1536
    index_topk: int = 2048
    index_head_dim: int = 128
    index_n_heads: int = 64
    first_k_dense_replace: Count = 3
    mlp_layer_types: tuple[str, ...] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"}

    @property
    def indexed(self) -> tuple[bool, ...]:
        """Which layers have an indexer of their own."""
        return (True,) * self.num_hidden_layers

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layers are dense."""
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(found["num_hidden_layers"], found["first_k_dense_replace"])
        super().settle(keys, found)


class DeepseekV32Indexer(nn.Module):
    def __init__(self, config: DeepseekV32Config, dtype: DType) -> None:
        super().__init__()
        width, heads, head_dim = config.hidden_size, config.index_n_heads, config.index_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, heads * head_dim, dtype)
        self.wk = nn.Linear(width, head_dim, dtype)
        self.k_norm = nn.LayerNorm(head_dim, dtype)
        self.weights_proj = nn.Linear(width, heads, dtype)


class DeepseekV32Attention(DeepseekV3Attention):
    def __init__(self, config: DeepseekV32Config, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.indexer = DeepseekV32Indexer(config, dtype) if config.indexed[layer_idx] else None


class DeepseekV32DecoderLayer(DeepseekV3DecoderLayer):
    attention_class = DeepseekV32Attention
    moe_class = Glm4MoeMoE


class DeepseekV32Model(DeepseekV3Model):
    layer_class = DeepseekV32DecoderLayer


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    config: DeepseekV32Config
    model_class = DeepseekV32Model
    forward = CausalModel.forward

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """The latents, and one key of the indexer for all its heads."""
        config = self.config
        return tuple(latent_cache(config, config.index_head_dim if indexed else 0) for indexed in config.indexed)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return DeepseekV32ForCausalLM(DeepseekV32Config.read(config, where), dtype)
