"""GLM-4-MoE, as `transformers/models/glm4_moe/modeling_glm4_moe.py` (5.23) writes it.

DeepSeek-V3's layers around plain attention, of which half the width is rotated. Leaves out the layers that predict
further tokens, which upstream does not build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3MoE, DeepseekV3TopkRouter
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig, check_groups, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("glm4_moe",)


@dataclass(frozen=True)
class Glm4MoeConfig(MoeConfig):
    """The settings of `Glm4MoeConfig` that shape memory."""

    vocab_size: int = 151552
    intermediate_size: int = 10944
    num_hidden_layers: int = 46
    num_attention_heads: int = 96
    num_key_value_heads: int = 8
    attention_bias: bool = False
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    n_routed_experts: int = 128
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: Count = 1
    norm_topk_prob: bool = True
    use_qk_norm: bool = False
    rotary_width: int = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.first_k_dense_replace)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Half of a head is rotated, if the config does not say more."""
        super().settle(keys, found)
        check_groups(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.5)


class Glm4MoeAttention(LlamaAttention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.use_qk_norm = config.use_qk_norm
        if self.use_qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, dtype)
            self.k_norm = nn.RMSNorm(self.head_dim, dtype)

    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return config.attention_bias, False

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys may be normed head by head."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(*hidden_shape)
        key_states = self.k_proj(hidden_states).view(*hidden_shape)
        value_states = self.v_proj(hidden_states).view(*hidden_shape)
        if self.use_qk_norm:
            query_states = self.q_norm(query_states)
            key_states = self.k_norm(key_states)
        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        value_states = value_states.transpose(1, 2)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The first dimensions of a head."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class Glm4MoeTopkRouter(DeepseekV3TopkRouter):
    bias_dtype = FLOAT32


class Glm4MoeMoE(DeepseekV3MoE):
    router_class = Glm4MoeTopkRouter


class Glm4MoeDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = Glm4MoeAttention
    moe_class: ClassVar[type[Any]] = Glm4MoeMoE


class Glm4MoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = Glm4MoeDecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """Of the rotated dimensions."""
        return RotaryEmbedding(config.rotary_width)


class Glm4MoeForCausalLM(LlamaForCausalLM):
    model_class = Glm4MoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Glm4MoeForCausalLM(Glm4MoeConfig.read(config, where), dtype)
