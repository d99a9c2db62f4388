"""MiniMax, as `transformers/models/minimax/modeling_minimax.py` (5.23) writes it.

Mixtral with lightning attention, a linear one in blocks, in every second layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.cache import label
from weigh.models.common import FULL, Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.hybrid import LINEAR, HybridConfig, HybridForCausalLM, HybridModel
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention
from weigh.models.mamba import token_count
from weigh.models.mixtral import MixtralSparseMoeBlock
from weigh.models.recurrent import linear_layer
from weigh.records import dataclass
from weigh.trace.events import RECURRENT_STATE

MODEL_TYPES = ("minimax",)


@dataclass(frozen=True)
class MiniMaxConfig(HybridConfig):
    """The settings of `MiniMaxConfig` that shape memory; the factors do not."""

    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    block_size: int = 256

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    @property
    def states(self) -> tuple[State, ...]:
        """The sum of keys times values."""
        return (State("recurrence", (self.num_attention_heads, self.head_dim, self.head_dim)),)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No losses of the routers, no windows."""
        super().settle(keys, found)
        keys.refuse("sliding_window", "windows in MiniMax", unless=None)
        keys.cannot_run("router_jitter_noise", "noise before the router", unless=0)
        keys.cannot_run("output_router_logits", "the routers' own loss")

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return LINEAR if layer_idx % 2 else FULL


class MiniMaxLightningAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: MiniMaxConfig, dtype: DType) -> None:
        super().__init__()
        width, heads, block = config.hidden_size, config.num_attention_heads, config.block_size
        inner = heads * config.head_dim
        self.norm = nn.RMSNorm(inner, dtype)
        self.qkv_proj = nn.Linear(width, inner * 3, dtype)
        self.out_proj = nn.Linear(inner, width, dtype)
        self.output_gate = nn.Linear(width, inner, dtype)
        self.slope_rate = nn.buffer((heads, 1, 1), dtype)
        self.query_decay = nn.buffer((heads, block, 1), dtype)
        self.key_decay = nn.buffer((heads, block, 1), dtype)
        self.diagonal_decay = nn.buffer((1, heads, block, block), dtype)
        self.num_attention_heads, self.head_dim, self.block_size = heads, config.head_dim, block
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor]:
        batch_size, seq_len, _ = hidden_states.shape
        heads, width = self.num_attention_heads, self.head_dim
        layer = linear_layer(cache, self.path)
        qkv_states = self.act_fn(self.qkv_proj(hidden_states))
        qkv_states = qkv_states.reshape(batch_size, seq_len, heads, 3 * width)
        query_states, key_states, value_states = qkv_states.split([width] * 3, 3)
        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        value_states = value_states.transpose(1, 2)
        attn_weights_inter = layer.values if layer is not None else None
        outputs: list[Tensor] = []
        if attn_weights_inter is None:
            attn_weights_inter = ops.zeros((batch_size, heads, width, width), value_states.dtype)
            blocks = token_count((seq_len + (self.block_size - 1)) // self.block_size)
            for number in range(blocks):
                size = self.block_size if number < blocks - 1 else seq_len - (blocks - 1) * self.block_size
                current_query_states = _part(query_states, 2, size)
                current_key_states = _part(key_states, 2, size)
                current_value_states = _part(value_states, 2, size)
                current_query_decay = _part(self.query_decay, 1, size)
                current_key_decay = _part(self.key_decay, 1, size)
                current_diagonal_decay = _part(_part(self.diagonal_decay, 2, size), 3, size)
                block_decay = ops.exp(-self.slope_rate * 1.0)
                attn_weights_intra = current_query_states.matmul(current_key_states.transpose(-1, -2))
                attn_output_intra = (attn_weights_intra * current_diagonal_decay).matmul(current_value_states)
                attn_output_inter = (current_query_states * current_query_decay).matmul(attn_weights_inter)
                current_attn_output = attn_output_inter + attn_output_intra
                outputs.append(current_attn_output)
                next_attn_weights_inter = (
                    (current_key_states * current_key_decay).transpose(-1, -2).matmul(current_value_states)
                )
                attn_weights_inter = attn_weights_inter * block_decay + next_attn_weights_inter
        else:
            ratio = ops.exp(-self.slope_rate)
            for _ in range(token_count(seq_len)):
                current_query_states = _part(query_states, 2, 1)
                current_key_states = _part(key_states, 2, 1)
                current_value_states = _part(value_states, 2, 1)
                current_attn_weights_inter = current_key_states.transpose(-1, -2).matmul(current_value_states)
                attn_weights_inter = ratio * attn_weights_inter + current_attn_weights_inter
                current_attn_output = current_query_states.matmul(attn_weights_inter)
                outputs.append(current_attn_output)
        attn_output = ops.cat(outputs, -2)
        del outputs
        attn_output = attn_output.transpose(1, 2)
        attn_output = attn_output.reshape(batch_size, seq_len, heads * width)
        attn_output = self.norm(attn_output)
        attn_output = ops.sigmoid(self.output_gate(hidden_states)) * attn_output
        attn_output = self.out_proj(attn_output)
        if layer is not None:
            layer.values = label(attn_weights_inter, RECURRENT_STATE)
        return attn_output, attn_weights_inter


def _part(x: Tensor, dim: int, size: Size) -> Tensor:
    """`x[..., start:stop]`: indexing makes an alias, not a slice, of what it takes whole."""
    return x.view(*x.shape) if size == x.shape[dim] else x.narrow(dim, size)


class MiniMaxDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        if config.layer_types[layer_idx] == LINEAR:
            self.self_attn: nn.Module = MiniMaxLightningAttention(config, dtype)
        else:
            self.self_attn = LlamaAttention(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.mlp = MixtralSparseMoeBlock(config, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        hidden_states = self.input_layernorm(hidden_states)
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual * 1.0 + hidden_states * 1.0
        hidden_states = self.post_attention_layernorm(hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual * 1.0 + hidden_states * 1.0
        return hidden_states


class MiniMaxModel(HybridModel):
    layer_class = MiniMaxDecoderLayer


class MiniMaxForCausalLM(HybridForCausalLM):
    model_class = MiniMaxModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MiniMaxForCausalLM(MiniMaxConfig.read(config, where), dtype)
