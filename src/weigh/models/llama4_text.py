"""The text model of Llama 4, as `transformers/models/llama4/modeling_llama4.py` (5.23) writes it.

Layers that attend to a chunk, with positions as complex numbers, and layers that attend to all, without positions;
experts in some layers, each of which every token passes through, scaled by zero where it was not chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    FULL,
    Attention,
    Cache,
    CausalModel,
    LayerCache,
    attention_interface,
    create_causal_mask,
    create_chunked_causal_mask,
    repeat_kv,
)
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v2 import ComplexRotaryEmbedding, as_pairs, from_pairs
from weigh.models.experts import GatedMLP
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import DENSE, SPARSE, MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("llama4_text",)
CHUNKED = "chunked_attention"


@dataclass(frozen=True)
class Llama4TextConfig(MoeConfig):
    """The settings of `Llama4TextConfig` that shape memory."""

    vocab_size: int = 202048
    hidden_size: int = 5120
    intermediate_size: int = 8192
    intermediate_size_mlp: int = 16384
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    num_experts_per_tok: int = 1
    num_local_experts: int = 16
    moe_layers: tuple[int, ...] = DERIVED
    interleave_moe_layer_step: int = 1
    use_qk_norm: bool = True
    no_rope_layers: tuple[bool, ...] = DERIVED
    """Despite the name: whether a layer knows positions."""
    no_rope_layer_interval: int = 4
    attention_chunk_size: int = 8192
    layer_types: tuple[str, ...] = DERIVED
    attn_temperature_tuning: bool = True
    attention_bias: bool = False

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The layers with experts are listed."""
        return tuple(SPARSE if i in self.moe_layers else DENSE for i in range(self.num_hidden_layers))

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Chunks, experts and positions."""
        return list(zip(self.layer_types, self.mlp_layer_types, self.no_rope_layers, strict=True))

    @property
    def leading_layers(self) -> int:
        """None: the pattern begins with the first layer."""
        return 0

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer attends to all and knows no positions; every n-th has experts."""
        super().settle(keys, found)
        count = found["num_hidden_layers"]
        if not found["no_rope_layers"]:
            every = found["no_rope_layer_interval"]
            found["no_rope_layers"] = tuple((i + 1) % every != 0 for i in range(count))
        if found["moe_layers"] is None:
            every = found["interleave_moe_layer_step"]
            found["moe_layers"] = tuple(range(every - 1, count, every))
        if found["layer_types"] is None:
            found["layer_types"] = tuple(CHUNKED if rope else FULL for rope in found["no_rope_layers"])
        for name in ("no_rope_layers", "layer_types"):
            if len(found[name]) != count:
                hint = f"Give one for each of the {count} layers."
                raise InputError(f"has {len(found[name])} entries", where=f"{keys.where}: {name}", hint=hint)
        for name in found["layer_types"]:
            if name not in (FULL, CHUNKED):
                raise InputError(f"has {name!r}", where=f"{keys.where}: layer_types", hint=f"{FULL} or {CHUNKED}.")


class Llama4TextExperts(nn.Module):
    def __init__(self, config: Llama4TextConfig, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.hidden_size = experts, width
        self.active_share = Fraction(config.num_experts_per_tok, experts)
        self.gate_up_proj = nn.parameter((experts, width, 2 * inner), dtype)
        self.down_proj = nn.parameter((experts, inner, width), dtype)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states.view(self.num_experts, -1, self.hidden_size)
        gate_up = ops.bmm(hidden_states, self.gate_up_proj)
        gate, up = gate_up.split(gate_up.shape[-1] // 2, -1)
        next_states = ops.bmm(up * self.act_fn(gate), self.down_proj)
        return next_states.view(-1, self.hidden_size)


def _norm(x: Tensor) -> Tensor:
    return x * ops.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class Llama4TextL2Norm(nn.Module):
    """Without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return _norm(x.float()).to(x.dtype)


class Llama4TextRMSNorm(nn.RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        output = _norm(hidden_states.float()).to(hidden_states.dtype)
        return output * self.weight


class Llama4Router(nn.Linear):
    def __init__(self, config: Llama4TextConfig, dtype: DType) -> None:
        super().__init__(config.hidden_size, config.num_local_experts, dtype)
        self.top_k = config.num_experts_per_tok

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        router_logits = super().forward(hidden_states)
        router_top_value, router_indices = ops.topk(router_logits, self.top_k)
        router_scores = ops.scatter_source_(ops.full_like(router_logits), router_indices, router_top_value)
        router_scores = ops.sigmoid(router_scores.float()).to(router_scores.dtype)
        return router_scores, router_logits


class Llama4TextMoe(nn.Module):
    role = nn.MLP

    def __init__(self, config: Llama4TextConfig, dtype: DType) -> None:
        super().__init__()
        self.hidden_dim = config.hidden_size
        self.experts = Llama4TextExperts(config, dtype)
        self.router = Llama4Router(config, dtype)
        self.shared_expert = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_scores, router_logits = self.router(hidden_states)
        experts = router_scores.shape[1]
        routed_in = ops.repeat(hidden_states, experts, 1)
        routed_in = routed_in * router_scores.transpose(0, 1).reshape(-1, 1)
        routed_out = self.experts(routed_in)
        out = self.shared_expert(hidden_states)
        out = ops.add_(out, ops.sum(routed_out.reshape(experts, -1, routed_out.shape[-1]), (0,)))
        return out, router_logits


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (batch, length, heads, width) turned as complex numbers."""
    xq_ = as_pairs(xq)
    xk_ = as_pairs(xk)
    xq_out = from_pairs(ops.mul_complex(xq_, freqs_cis.unsqueeze(2)))
    xk_out = from_pairs(ops.mul_complex(xk_, freqs_cis.unsqueeze(2)))
    return xq_out.to(xq.dtype), xk_out.to(xk.dtype)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, groups: int
) -> tuple[Tensor, Tensor]:
    """`eager_attention_forward`: the softmax is in the scores' own dtype."""
    key_states = repeat_kv(key, groups)
    value_states = repeat_kv(value, groups)
    attn_weights = query.matmul(key_states.transpose(2, 3)) * 0.125
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights)
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value_states)
    attn_output = attn_output.transpose(1, 2).contiguous()
    return attn_output, attn_weights


class Llama4TextAttention(LlamaAttention):
    eager: Attention = staticmethod(eager_attention)

    def __init__(self, config: Llama4TextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.sliding_window = config.attention_chunk_size if config.layer_types[layer_idx] == CHUNKED else None
        self.use_rope = config.no_rope_layers[layer_idx]
        self.attn_temperature_tuning = config.attn_temperature_tuning
        self.qk_norm = Llama4TextL2Norm() if config.use_qk_norm and self.use_rope else None

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(*hidden_shape)
        key_states = self.k_proj(hidden_states).view(*hidden_shape)
        value_states = self.v_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        if self.use_rope:
            query_states, key_states = apply_rotary_emb(query_states, key_states, position_embeddings)
        if self.qk_norm is not None:
            query_states = self.qk_norm(query_states)
            key_states = self.qk_norm(key_states)
        if self.attn_temperature_tuning and not self.use_rope:
            past_seen_tokens = cache.offset(self.sliding_window) if cache is not None else 0
            positions = ops.arange(length) + past_seen_tokens
            attn_scales = ops.log1p(ops.floor((positions.float() + 1.0) / 8192.0)) * 0.1 + 1.0
            attn_scales = attn_scales.view(1, length, 1, 1).expand(batch, length, 1, 1)
            query_states = (query_states * attn_scales).to(query_states.dtype)
        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface(self.eager)
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, self.num_heads * self.head_dim).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Llama4TextDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Llama4TextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Llama4TextAttention(config, dtype, layer_idx)
        self.is_moe_layer = config.mlp_layer_types[layer_idx] == SPARSE
        if self.is_moe_layer:
            self.feed_forward: nn.Module = Llama4TextMoe(config, dtype)
        else:
            self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size_mlp, config.hidden_act, dtype)
        self.input_layernorm = Llama4TextRMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = Llama4TextRMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        attention_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + attention_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.feed_forward(hidden_states)
        if self.is_moe_layer:
            hidden_states, _ = hidden_states  # type: ignore[misc]
        hidden_states = residual + hidden_states.view(*residual.shape)
        return hidden_states


class Llama4TextModel(LlamaModel):
    config: Llama4TextConfig
    layer_class: ClassVar[type[Any]] = Llama4TextDecoderLayer
    norm_class = Llama4TextRMSNorm

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """Complex numbers."""
        return ComplexRotaryEmbedding(config.head_dim)

    def causal_mask_mapping(
        self, inputs_embeds: Tensor, cache: Cache | None, positions: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Both masks, always."""
        chunk, types = self.config.attention_chunk_size, self.config.layer_types
        full_window = None if FULL in types else chunk
        chunk_window = chunk if CHUNKED in types else None
        full = create_causal_mask(inputs_embeds, cache, positions, attention_mask, cache_window=full_window)
        return {
            FULL: full,
            CHUNKED: create_chunked_causal_mask(inputs_embeds, cache, positions, attention_mask, chunk, chunk_window),
        }


class Llama4ForCausalLM(LlamaForCausalLM):
    config: Llama4TextConfig
    model_class = Llama4TextModel

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Chunks, and all tokens."""
        config = self.config
        heads, width, chunk = config.num_key_value_heads, config.head_dim, config.attention_chunk_size
        return tuple(
            LayerCache(layout.CHUNKED, heads, width, width, chunk)
            if layer_type == CHUNKED
            else LayerCache(layout.FULL, heads, width, width)
            for layer_type in config.layer_types
        )


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Llama4ForCausalLM(Llama4TextConfig.read(config, where), dtype)
