"""Qwen3-Next, as `transformers/models/qwen3_next/modeling_qwen3_next.py` (5.23) writes it.

Gated delta nets (on their slow path) in three layers of four, gated attention in the others, experts in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding, attention_interface
from weigh.models.config import DERIVED, Keys
from weigh.models.delta_net import (
    DeltaNetConfig,
    GatedNorm,
    chunk_gated_delta_rule,
    recurrent_gated_delta_rule,
)
from weigh.models.experts import GatedMLP
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.hybrid import LINEAR, HybridForCausalLM, HybridModel
from weigh.models.llama import LlamaAttention
from weigh.models.qwen2_moe import Qwen2MoeSparseMoeBlock
from weigh.models.recurrent import (
    Conv1d,
    apply_mask_to_padding_states,
    causal_conv1d_fn,
    causal_conv1d_update,
    linear_layer,
    update_conv_state,
    update_recurrent_state,
)
from weigh.records import dataclass

MODEL_TYPES = ("qwen3_next",)


@dataclass(frozen=True)
class QwenHybridConfig(DeltaNetConfig):
    """What the configs of Qwen's hybrids share."""

    num_key_value_heads: int = 2
    head_dim: int = 256
    rotary_width: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A quarter of each head is rotated."""
        super().settle(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.25)
        keys.cannot_run("output_router_logits", "the routers' own loss")

    def is_sparse(self, layer_idx: int) -> bool:
        """The layer has experts."""
        return True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Attention, and experts."""
        return [(name, self.is_sparse(i)) for i, name in enumerate(self.layer_types)]


@dataclass(frozen=True)
class Qwen3NextConfig(QwenHybridConfig):
    """The settings of `Qwen3NextConfig` that shape memory."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 10
    num_experts: int = 512
    norm_topk_prob: bool = True
    mlp_only_layers: tuple[int, ...] = ()

    def is_sparse(self, layer_idx: int) -> bool:
        return layer_idx not in self.mlp_only_layers and (layer_idx + 1) % self.decoder_sparse_step == 0

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        found["mlp_only_layers"] = found["mlp_only_layers"] or ()


class Qwen3NextAttention(LlamaAttention):
    """Queries come with a gate for what they find."""

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, 2 * self.num_heads * self.head_dim, dtype, config.attention_bias)
        self.q_norm = GemmaRMSNorm(self.head_dim, dtype)
        self.k_norm = GemmaRMSNorm(self.head_dim, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states, gate = (
            self.q_proj(hidden_states).view(*input_shape, -1, self.head_dim * 2).split([self.head_dim] * 2, -1)
        )
        gate = gate.reshape(*input_shape, -1)
        query_states = self.q_norm(query_states.view(*hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(*hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        attention = attention_interface(self.eager)
        dropout = self.attention_dropout if self.training else 0.0
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = attn_output * ops.sigmoid(gate)
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


Projected = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]
"""What the convolution reads (B, channels, T), gates, learning rates, decays; what upstream's variables keep alive
until the convolution is done, and to the end."""


class Qwen3NextGatedDeltaNet(nn.Module):
    role = nn.MIXER

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.num_k_heads, self.num_v_heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.head_k_dim, self.head_v_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.key_dim, self.value_dim = config.key_dim, config.value_dim
        self.conv_kernel_size = config.linear_conv_kernel_dim
        self.act = nn.Activation(config.hidden_act)
        self.conv1d = Conv1d(config.conv_dim, config.linear_conv_kernel_dim, dtype, bias=False)
        self.add_projections(config, dtype)
        self.dt_bias = nn.parameter((config.linear_num_value_heads,), dtype)
        self.A_log = nn.parameter((config.linear_num_value_heads,), dtype)
        self.norm = GatedNorm(config.linear_value_head_dim, dtype)
        self.out_proj = nn.Linear(config.value_dim, config.hidden_size, dtype)

    def add_projections(self, config: Any, dtype: DType) -> None:
        """All in two."""
        self.in_proj_qkvz = nn.Linear(config.hidden_size, 2 * config.key_dim + 2 * config.value_dim, dtype)
        self.in_proj_ba = nn.Linear(config.hidden_size, 2 * config.linear_num_value_heads, dtype)

    def fix_query_key_value_ordering(self, mixed_qkvz: Tensor, mixed_ba: Tensor) -> list[Tensor]:
        """Queries, keys, values, gates, and what makes the learning rate and the decay, out of two projections."""
        batch_size, seq_len, _ = mixed_qkvz.shape
        heads, shared = self.num_k_heads, self.num_v_heads // self.num_k_heads
        values = shared * self.head_v_dim
        mixed_qkvz = mixed_qkvz.view(batch_size, seq_len, heads, 2 * self.head_k_dim + 2 * values)
        mixed_ba = mixed_ba.view(batch_size, seq_len, heads, 2 * shared)
        query, key, value, z = mixed_qkvz.split([self.head_k_dim, self.head_k_dim, values, values], 3)
        b, a = mixed_ba.split([shared, shared], 3)
        value = value.reshape(batch_size, seq_len, -1, self.head_v_dim)
        z = z.reshape(batch_size, seq_len, -1, self.head_v_dim)
        b = b.reshape(batch_size, seq_len, self.num_v_heads)
        a = a.reshape(batch_size, seq_len, self.num_v_heads)
        return [query, key, value, z, b, a]

    def project(self, hidden_states: Tensor) -> Projected:
        projected_states_qkvz = self.in_proj_qkvz(hidden_states)
        projected_states_ba = self.in_proj_ba(hidden_states)
        query, key, value, z, b, a = self.fix_query_key_value_ordering(projected_states_qkvz, projected_states_ba)
        batch_size, seq_len, _ = hidden_states.shape
        query, key, value = [x.reshape(batch_size, seq_len, -1) for x in (query, key, value)]
        mixed_qkv = ops.cat((query, key, value), -1)
        mixed_qkv = mixed_qkv.transpose(1, 2)
        return mixed_qkv, z, b, a, [query, key, value], [projected_states_qkvz, projected_states_ba]

    def forward(self, hidden_states: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        batch_size, seq_len, _ = hidden_states.shape
        layer = linear_layer(cache, self.path)
        conv_state = recurrent_state = None
        if layer is not None and layer.has_previous_state:
            conv_state, recurrent_state = layer.keys, layer.values
        mixed_qkv, z, b, a, parts, projected = self.project(hidden_states)
        weight = self.conv1d.weight
        if conv_state is not None and seq_len == 1:
            mixed_qkv = causal_conv1d_update(mixed_qkv, conv_state, weight.squeeze(1), self.conv1d.bias, self.act)
        else:
            if layer is not None:
                mixed_qkv = update_conv_state(layer, mixed_qkv, self.conv_kernel_size)
            mixed_qkv = causal_conv1d_fn(mixed_qkv, weight.squeeze(1), self.conv1d.bias, self.act)
            if layer is not None:
                mixed_qkv = mixed_qkv.narrow(-1, seq_len)
        mixed_qkv = mixed_qkv.transpose(1, 2)
        query, key, value = mixed_qkv.split([self.key_dim, self.key_dim, self.value_dim], -1)
        del parts
        query = query.reshape(batch_size, seq_len, -1, self.head_k_dim)
        key = key.reshape(batch_size, seq_len, -1, self.head_k_dim)
        value = value.reshape(batch_size, seq_len, -1, self.head_v_dim)
        beta = ops.sigmoid(b)
        g = -ops.exp(self.A_log.float()) * ops.softplus(a.float() + self.dt_bias)
        last_recurrent_state: Tensor | None
        if recurrent_state is not None and seq_len == 1:
            core_attn_out, last_recurrent_state = recurrent_gated_delta_rule(
                query, key, value, g, beta, recurrent_state
            )
        else:
            core_attn_out, last_recurrent_state = chunk_gated_delta_rule(
                query, key, value, g, beta, recurrent_state, layer is not None
            )
        if layer is not None and last_recurrent_state is not None:
            update_recurrent_state(layer, last_recurrent_state)
        core_attn_out = core_attn_out.reshape(-1, self.head_v_dim)
        z = z.reshape(-1, self.head_v_dim)
        core_attn_out = self.norm(core_attn_out, z)
        core_attn_out = core_attn_out.reshape(batch_size, seq_len, -1)
        output = self.out_proj(core_attn_out)
        del projected
        return output  # type: ignore[no-any-return]


class Qwen3NextDecoderLayer(nn.Module):
    role = nn.BLOCK
    delta_net_class: ClassVar[type[Qwen3NextGatedDeltaNet]] = Qwen3NextGatedDeltaNet

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.is_linear = config.layer_types[layer_idx] == LINEAR
        if self.is_linear:
            self.linear_attn = self.delta_net_class(config, dtype)
        else:
            self.self_attn = Qwen3NextAttention(config, dtype, layer_idx)
        if config.is_sparse(layer_idx):
            self.mlp: nn.Module = Qwen2MoeSparseMoeBlock(config, dtype)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, dtype)

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
        if self.is_linear:
            hidden_states = self.linear_attn(hidden_states, cache, mask)
        else:
            hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class Qwen3NextModel(HybridModel):
    layer_class: ClassVar[type[Any]] = Qwen3NextDecoderLayer
    norm_class = GemmaRMSNorm

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of each head."""
        return RotaryEmbedding(config.rotary_width)


class Qwen3NextForCausalLM(HybridForCausalLM):
    model_class: ClassVar[type[Any]] = Qwen3NextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen3NextForCausalLM(Qwen3NextConfig.read(config, where), dtype)
