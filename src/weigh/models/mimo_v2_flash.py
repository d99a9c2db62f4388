"""MiMo-V2-Flash, as `transformers/models/mimo_v2_flash/modeling_mimo_v2_flash.py` (5.23) writes it.

Windows with sinks and twice the key-value heads in most layers, values narrower than keys, DeepSeek-V3's experts
without a shared one. It has no sdpa.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import FULL, SLIDING, Cache, CausalModel, LayerCache, cos_sin, repeat_kv
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3TopkRouter
from weigh.models.experts import Experts
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig, check_groups, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("mimo_v2_flash",)


@dataclass(frozen=True)
class MiMoV2FlashConfig(MoeConfig):
    """The settings of `MiMoV2FlashConfig` that shape memory."""

    vocab_size: int = 152576
    intermediate_size: int = 16384
    num_hidden_layers: int = 48
    num_attention_heads: int = 64
    num_key_value_heads: int = 4
    head_dim: int = 192
    v_head_dim: int = 128
    attention_bias: bool = False
    moe_intermediate_size: int = 2048
    num_experts_per_tok: int = 8
    n_routed_experts: int = 256
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    sliding_window: int | None = 129
    sliding_window_size: int | None = None
    layer_types: tuple[str, ...] = DERIVED
    mlp_layer_types: tuple[str, ...] = DERIVED
    rotary_widths: Mapping[str, int] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer is dense and sees all tokens, as every sixth does; a third of a head is rotated."""
        count = found["num_hidden_layers"]
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(count, 1)
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if i and (i + 1) % 6 else FULL for i in range(count))
        if found["sliding_window_size"] is not None:
            found["sliding_window"] = found["sliding_window_size"] + 1
        super().settle(keys, found)
        keys.check_layer_types(found)
        check_groups(keys, found)
        found["rotary_widths"] = rotary_widths(keys, found, dict.fromkeys((FULL, SLIDING), 0.334))

    def kv_heads(self, layer_idx: int) -> int:
        """Layers with windows have twice as many."""
        return self.num_key_value_heads * (2 if self.layer_types[layer_idx] == SLIDING else 1)


def rotary_widths(keys: Keys, found: Mapping[str, Any], defaults: Mapping[str, float]) -> dict[str, int]:
    """How much of a head is rotated in the layers of each type: `rope_parameters` says it type by type."""
    given = keys.config.get("rope_parameters") or {}
    widths = {}
    for layer_type in sorted(set(found["layer_types"])):
        section = given.get(layer_type) if given else {"partial_rotary_factor": defaults[layer_type]}
        if section is not None:
            widths[layer_type] = Keys({"rope_parameters": section}, keys.where).rotary_width(found["head_dim"])
    return widths


class TypedRotaryEmbedding(nn.Module):
    """Frequencies of its own for each type of layer, and a copy of them."""

    role = nn.ROTARY

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        for layer_type, width in widths.items():
            setattr(self, f"{layer_type}_inv_freq", nn.buffer(((width + 1) // 2,), FLOAT32))
            setattr(self, f"{layer_type}_original_inv_freq", nn.buffer(((width + 1) // 2,), FLOAT32))

    def forward(self, x: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, length, width) of one type of layer, in the dtype of `x`."""
        return cos_sin(positions, getattr(self, f"{layer_type}_inv_freq"), x.dtype)


class MiMoV2FlashAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: MiMoV2FlashConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, bias, heads, kv_heads = (
            config.hidden_size,
            config.attention_bias,
            config.num_attention_heads,
            config.kv_heads(layer_idx),
        )
        self.q_proj = nn.Linear(width, heads * config.head_dim, dtype, bias)
        self.k_proj = nn.Linear(width, kv_heads * config.head_dim, dtype, bias)
        self.v_proj = nn.Linear(width, kv_heads * config.v_head_dim, dtype, bias)
        self.o_proj = nn.Linear(heads * config.v_head_dim, width, dtype)
        sliding = config.layer_types[layer_idx] == SLIDING
        self.sinks = nn.parameter((heads,), dtype) if sliding else None
        self.sliding_window = config.sliding_window if sliding else None
        self.head_dim, self.v_head_dim, self.num_key_value_groups = (
            config.head_dim,
            config.v_head_dim,
            heads // kv_heads,
        )
        self.attention_dropout = config.attention_dropout

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor]:
        input_shape = hidden_states.shape[:-1]
        qk_hidden_shape, v_hidden_shape = (*input_shape, -1, self.head_dim), (*input_shape, -1, self.v_head_dim)
        query_states = self.q_proj(hidden_states).view(*qk_hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(*qk_hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(*v_hidden_shape).transpose(1, 2) * 0.707
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        attn_output, attn_weights = self.eager(query_states, key_states, value_states, mask)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights

    def eager(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`eager_attention_forward`: where there are sinks, the softmax has one more column."""
        key_states = repeat_kv(key, self.num_key_value_groups)
        value_states = repeat_kv(value, self.num_key_value_groups)
        attn_weights = query.matmul(key_states.transpose(2, 3)) * 0.125
        if mask is not None:
            attn_weights = attn_weights + mask
        if self.sinks is not None:
            sinks = self.sinks.reshape(1, -1, 1, 1).expand(query.shape[0], query.shape[1], query.shape[2], 1)
            attn_weights = ops.cat([attn_weights, sinks], -1)
        attn_weights = attn_weights - ops.max_last(attn_weights)[0]
        probs = ops.softmax(attn_weights, attn_weights.dtype)
        if self.sinks is not None:
            probs = probs.narrow(-1, probs.shape[-1] - 1)
        attn_weights = ops.dropout(probs, self.attention_dropout, self.training).to(value_states.dtype)
        attn_output = attn_weights.matmul(value_states)
        attn_output = attn_output.transpose(1, 2).contiguous()
        return attn_output, attn_weights


class MiMoV2FlashMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: MiMoV2FlashConfig, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.experts = Experts(experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)
        self.gate = DeepseekV3TopkRouter(config, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        orig_shape = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        return self.experts(hidden_states, topk_indices, topk_weights).view(*orig_shape)  # type: ignore[no-any-return]


class MiMoV2FlashDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = MiMoV2FlashAttention
    moe_class: ClassVar[type[Any]] = MiMoV2FlashMoE


class MiMoV2FlashModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = MiMoV2FlashDecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """By type of layer."""
        return TypedRotaryEmbedding(config.rotary_widths)

    def mask_types(self) -> Iterable[str]:
        """Of the layers that there are, in the order of a set."""
        return sorted(set(self.config.layer_types))

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each type's own."""
        types = sorted(set(self.config.layer_types))
        return {layer_type: self.rotary_emb(hidden_states, positions, layer_type) for layer_type in types}


class MiMoV2FlashForCausalLM(LlamaForCausalLM):
    config: MiMoV2FlashConfig
    model_class = MiMoV2FlashModel

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Layers with windows have more heads."""
        config = self.config
        return tuple(
            LayerCache(
                layout.SLIDING if layer_type == SLIDING else layout.FULL,
                config.kv_heads(i),
                config.head_dim,
                config.v_head_dim,
                config.sliding_window if layer_type == SLIDING else None,
            )
            for i, layer_type in enumerate(config.layer_types)
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MiMoV2FlashForCausalLM(MiMoV2FlashConfig.read(config, where), dtype)
