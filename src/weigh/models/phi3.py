"""Phi-3, as `transformers/models/phi3/modeling_phi3.py` (5.23) writes it.

Llama with one projection for queries, keys and values, one for gate and up, and a rotary embedding that may turn only
a part of the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64, DType
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    SLIDING,
    Cache,
    CausalModel,
    RotaryEmbedding,
    attention_interface,
    rotate_half,
)
from weigh.models.config import DERIVED, ROPE_TYPES, Keys, Probability
from weigh.models.llama import DecoderConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("phi3",)


@dataclass(frozen=True)
class Phi3Config(DecoderConfig):
    """The settings of `Phi3Config` that shape memory."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    resid_pdrop: Probability = 0.0
    sliding_window: int | None = None
    rotary_dim: int = DERIVED
    longrope: bool = False

    rope_types = (*ROPE_TYPES, "longrope", "su")

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Works out how much of the width is turned."""
        super().settle(keys, found)
        found["rotary_dim"] = keys.rotary_width(found["head_dim"], known=cls.rope_types)
        found["longrope"] = keys.rope_type(known=cls.rope_types) in ("longrope", "su", "yarn")


class Phi3LongRotaryEmbedding(RotaryEmbedding):
    """`dynamic_rope_update` of "longrope": in every step frequencies for short or for long sequences are picked.

    Those for long ones are made in the first step, and stay.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.long_inv_freq: list[Tensor] = []

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with no_grad():
            self.longrope_frequency_update()
        return super().forward(x, positions)

    def longrope_frequency_update(self) -> None:
        """`inv_freq` is copied over in place."""
        seq_len = ops.scalar_tensor(INT64)  # `torch.max(position_ids)`
        seq_len = seq_len + 1
        if not self.long_inv_freq:
            self.long_inv_freq.append(self.rope_init_fn())
        is_long = ops.greater(seq_len, seq_len)
        ops.where(is_long, self.long_inv_freq[0], self.original_inv_freq)

    def rope_init_fn(self) -> Tensor:
        """`_compute_longrope_parameters`: what it makes on the way, and what stays."""
        count = self.inv_freq.shape[0]
        ext_factors = ops.full((count,), FLOAT32)
        inv_freq_shape = ops.arange(count).float() / 2.0
        return ops.reciprocal(ext_factors * (inv_freq_shape * 1.0)) * 1.0


class Phi3MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: Phi3Config, dtype: DType) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, dtype)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, dtype)
        self.activation_fn = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        up_states = self.gate_up_proj(hidden_states)
        gate, up_states = up_states.split(up_states.shape[-1] // 2, dim=-1)
        up_states = up_states * self.activation_fn(gate)
        return self.down_proj(up_states)  # type: ignore[no-any-return]


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the first part of the width, and appends the rest, even where there is none."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    q_rot, q_pass = cut(q, cos.shape[-1])
    k_rot, k_pass = cut(k, cos.shape[-1])
    q_embed = ops.cat([(q_rot * cos) + (rotate_half(q_rot) * sin), q_pass], -1)
    k_embed = ops.cat([(k_rot * cos) + (rotate_half(k_rot) * sin), k_pass], -1)
    return q_embed, k_embed


def cut(x: Tensor, rotary_dim: Size) -> tuple[Tensor, Tensor]:
    """`x[..., :rotary_dim], x[..., rotary_dim:]`: indexing makes an alias, not a slice, of what it takes whole."""
    width = x.shape[-1]
    turned = x.view(*x.shape) if rotary_dim == width else x.narrow(-1, rotary_dim)
    return turned, x.narrow(-1, width - rotary_dim, rotary_dim)


class Phi3Attention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: Phi3Config, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.attention_dropout = config.attention_dropout
        op_size = self.num_heads * self.head_dim + 2 * (self.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, dtype)
        self.qkv_proj = nn.Linear(config.hidden_size, op_size, dtype)
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == SLIDING else None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        qkv = self.qkv_proj(hidden_states)
        query_pos, key_size = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        query_states = qkv.narrow(-1, query_pos)
        key_states = qkv.narrow(-1, key_size, query_pos)
        value_states = qkv.narrow(-1, key_size, query_pos + key_size)
        query_states = query_states.view(*hidden_shape).transpose(1, 2)
        key_states = key_states.view(*hidden_shape).transpose(1, 2)
        value_states = value_states.view(*hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, query_pos).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Phi3DecoderLayer(LlamaDecoderLayer):
    attention_class = Phi3Attention
    mlp_class = Phi3MLP

    def __init__(self, config: Phi3Config, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.resid_attn_dropout = nn.Dropout(config.resid_pdrop)
        self.resid_mlp_dropout = nn.Dropout(config.resid_pdrop)

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
        hidden_states = residual + self.resid_attn_dropout(hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + self.resid_mlp_dropout(hidden_states)
        return hidden_states


class Phi3Model(LlamaModel):
    layer_class = Phi3DecoderLayer

    def rotary(self, config: Phi3Config) -> nn.Module:  # type: ignore[override]
        """Of a part of the width."""
        return Phi3LongRotaryEmbedding(config.rotary_dim) if config.longrope else RotaryEmbedding(config.rotary_dim)


class Phi3ForCausalLM(LlamaForCausalLM):
    model_class = Phi3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Phi3ForCausalLM(Phi3Config.read(config, where), dtype)
