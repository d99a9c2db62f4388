"""Mistral Small 4, as `transformers/models/mistral4/modeling_mistral4.py` (5.23) writes it; counted, not run.

DeepSeek-V3 whose queries are scaled by their positions, with routers that choose by a softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Count
from weigh.models.deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3ForCausalLM,
    DeepseekV3Model,
    DeepseekV3MoE,
    LatentConfig,
)
from weigh.models.sparse import first_dense
from weigh.records import dataclass

MODEL_TYPES = ("mistral4",)


@dataclass(frozen=True)
class Mistral4Config(LatentConfig):
    """The settings of `Mistral4Config` that shape memory."""

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    n_routed_experts: int = 128
    kv_lora_rank: int = 256
    q_lora_rank: int | None = 1024
    qk_nope_head_dim: int = 64
    n_group: int | None = 1
    topk_group: int | None = 1
    num_experts_per_tok: int = 4
    first_k_dense_replace: Count = 0

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.first_k_dense_replace)


class Mistral4TopkRouter(nn.Module):
    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.n_routed_experts, config.hidden_size), dtype)


class Mistral4MoE(DeepseekV3MoE):
    router_class = Mistral4TopkRouter


class Mistral4DecoderLayer(DeepseekV3DecoderLayer):
    moe_class = Mistral4MoE


class Mistral4Model(DeepseekV3Model):
    layer_class = Mistral4DecoderLayer


class Mistral4ForCausalLM(DeepseekV3ForCausalLM):
    model_class = Mistral4Model
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Mistral4ForCausalLM(Mistral4Config.read(config, where), dtype)
