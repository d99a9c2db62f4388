"""Nemotron and Minitron, as `transformers/models/nemotron/modeling_nemotron.py` (5.23) writes them.

Llama with layer norms whose weights are counted from zero, a plain MLP of squared ReLUs, and half of each head rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.autocast import autocast
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding, rotate_half
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.phi3 import cut
from weigh.records import dataclass

MODEL_TYPES = ("nemotron",)


@dataclass(frozen=True)
class NemotronConfig(DecoderConfig):
    """The settings of `NemotronConfig` that shape memory."""

    vocab_size: int = 256000
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_attention_heads: int = 48
    hidden_act: str = "relu2"
    attention_bias: bool = False
    mlp_bias: bool = False
    rotary_dim: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Half of each head is turned."""
        super().settle(keys, found)
        found["rotary_dim"] = keys.rotary_width(found["head_dim"], default=0.5)


class NemotronLayerNorm1P(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        """A layer norm in autocast's dtype, where there is one."""
        args = _cast_if_autocast_enabled(x, self.weight + 1.0, self.bias)  # type: ignore[operator]
        with autocast(None):
            return ops.layer_norm(*args)


def _cast_if_autocast_enabled(*args: Any) -> tuple[Any, ...]:
    if state.autocast is None:
        return args
    target_dtype = state.autocast.dtype
    return tuple(arg.to(target_dtype) for arg in args)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of the first dimensions of queries and keys."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    rot_dim = cos.shape[-1]
    q, q_pass = cut(q, rot_dim)
    k, k_pass = cut(k, rot_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return ops.cat([q_embed, q_pass], -1), ops.cat([k_embed, k_pass], -1)


class NemotronMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: NemotronConfig, dtype: DType) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, dtype, config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, dtype, config.mlp_bias)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        return self.down_proj(self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]


class NemotronAttention(LlamaAttention):
    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of a part of the width."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class NemotronDecoderLayer(LlamaDecoderLayer):
    attention_class = NemotronAttention
    mlp_class = NemotronMLP
    norm_class = NemotronLayerNorm1P


class NemotronModel(LlamaModel):
    layer_class = NemotronDecoderLayer
    norm_class = NemotronLayerNorm1P

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of the width."""
        return RotaryEmbedding(config.rotary_dim)


class NemotronForCausalLM(LlamaForCausalLM):
    model_class = NemotronModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return NemotronForCausalLM(NemotronConfig.read(config, where), dtype)
