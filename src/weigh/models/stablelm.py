"""StableLM, as `transformers/models/stablelm/modeling_stablelm.py` (5.23) writes it.

Llama with layer norms, positions turned in a part of the width, and attention and MLP that may run side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding, apply_rotary_pos_emb, attention_interface
from weigh.models.config import DERIVED, Keys, Probability
from weigh.models.llama import DecoderConfig, LlamaForCausalLM, LlamaMLP, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("stablelm",)


@dataclass(frozen=True)
class StableLmConfig(DecoderConfig):
    """The settings of `StableLmConfig` that shape memory."""

    vocab_size: int = 50304
    intermediate_size: int = 6912
    hidden_size: int = 2560
    num_key_value_heads: int = 32
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    hidden_dropout: Probability = 0.0
    rotary_dim: int = DERIVED

    heads_divide_width = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The heads share the width; a quarter of each is turned."""
        found["head_dim"] = None
        super().settle(keys, found)
        found["rotary_dim"] = keys.rotary_width(found["head_dim"], default=0.25)


class StableLmLayerNormPerHead(nn.Module):
    role = nn.NORM

    def __init__(self, dim: int, num_heads: int, dtype: DType) -> None:
        super().__init__()
        self.norms = _ModuleList([nn.LayerNorm(dim, dtype, bias=False) for _ in range(num_heads)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        states_per_heads = hidden_states.split(1, dim=1)
        return ops.cat([norm(states) for norm, states in zip(self.norms, states_per_heads, strict=True)], 1)


class _ModuleList(nn.Module):
    """`nn.ModuleList`."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for _, module in self.children())


class StableLmAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: StableLmConfig, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.use_qkv_bias
        self.num_heads, self.num_key_value_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.rotary_ndims = config.rotary_dim
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, dtype, bias)
        self.k_proj = nn.Linear(width, self.num_key_value_heads * self.head_dim, dtype, bias)
        self.v_proj = nn.Linear(width, self.num_key_value_heads * self.head_dim, dtype, bias)
        self.o_proj = nn.Linear(width, width, dtype)
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm = StableLmLayerNormPerHead(self.head_dim, self.num_heads, dtype)
            self.k_layernorm = StableLmLayerNormPerHead(self.head_dim, self.num_key_value_heads, dtype)
        self.attention_dropout = config.attention_dropout

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        bsz, q_len, width = hidden_states.shape
        query_states = self.q_proj(hidden_states)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        query_states = query_states.view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        key_states = key_states.view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        value_states = value_states.view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        if self.qk_layernorm:
            query_states = self.q_layernorm(query_states)
            key_states = self.k_layernorm(key_states)
        cos, sin = position_embeddings
        rotary, rest = self.rotary_ndims, self.head_dim - self.rotary_ndims
        query_rot, query_pass = _first(query_states, rotary), query_states.narrow(-1, rest, rotary)
        key_rot, key_pass = _first(key_states, rotary), key_states.narrow(-1, rest, rotary)
        query_rot, key_rot = apply_rotary_pos_emb(query_rot, key_rot, cos, sin)
        query_states = ops.cat([query_rot, query_pass], -1)
        key_states = ops.cat([key_rot, key_pass], -1)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(bsz, q_len, width)
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


def _first(x: Tensor, width: int) -> Tensor:
    """`x[..., :width]`: indexing makes an alias, not a slice, of what it takes whole."""
    return x.view(*x.shape) if width == x.shape[-1] else x.narrow(-1, width)


class StableLmDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: StableLmConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.self_attn = StableLmAttention(config, dtype)
        self.mlp = LlamaMLP(config, dtype)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        if not self.use_parallel_residual:
            self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.dropout = nn.Dropout(config.hidden_dropout)

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
        self_attn_output, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        if self.use_parallel_residual:
            mlp_output = self.mlp(hidden_states)
            mlp_output = self.dropout(mlp_output)
            hidden_states = residual + self_attn_output + mlp_output
        else:
            residual = residual + self_attn_output
            mlp_output = self.mlp(self.post_attention_layernorm(residual))
            mlp_output = self.dropout(mlp_output)
            hidden_states = residual + mlp_output
        return hidden_states


class StableLmModel(LlamaModel):
    layer_class = StableLmDecoderLayer
    norm_class = nn.LayerNorm

    def rotary(self, config: StableLmConfig) -> nn.Module:  # type: ignore[override]
        """Of a part of the width."""
        return RotaryEmbedding(config.rotary_dim)


class StableLmForCausalLM(LlamaForCausalLM):
    model_class = StableLmModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return StableLmForCausalLM(StableLmConfig.read(config, where), dtype)
