"""nanochat, as `transformers/models/nanochat/modeling_nanochat.py` (5.23) writes it.

Llama whose norms have no weights: before the first layer too, and of queries and keys after their rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.gemma2 import Gemma2ForCausalLM
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("nanochat",)


@dataclass(frozen=True)
class NanoChatConfig(DecoderConfig):
    """The settings of `NanoChatConfig` that shape memory."""

    vocab_size: int = 50304
    hidden_size: int = 768
    intermediate_size: int = 8192
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    hidden_act: str = "relu2"
    final_logit_softcapping: float | None = 15.0
    attention_bias: bool = False


class NanoChatRMSNorm(nn.Module):
    """`Llama4TextL2Norm`."""

    role = nn.NORM

    def __init__(self, _dim: Size, _dtype: DType) -> None:
        super().__init__()

    def _norm(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x.float()).to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """The second half of the width before the first, negated."""
    width = x.shape[-1]
    half = width // 2
    x1 = x.narrow(-1, half)
    x2 = x.narrow(-1, width - half, half)
    return ops.cat([x2, -x1], -1)


class NanoChatAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_norm = NanoChatRMSNorm(self.head_dim, dtype)
        self.k_norm = NanoChatRMSNorm(self.head_dim, dtype)

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated, then normed."""
        cos, sin = position_embeddings
        query, key = _apply_rotary_pos_emb(query, key, cos, sin)
        query = self.q_norm(query)
        key = self.k_norm(key)
        return query, key


def _apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


class NanoChatMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        self.activation_fn = nn.Activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return hidden_states


class NanoChatDecoderLayer(LlamaDecoderLayer):
    attention_class = NanoChatAttention
    mlp_class = NanoChatMLP
    norm_class = NanoChatRMSNorm


class NanoChatModel(LlamaModel):
    layer_class = NanoChatDecoderLayer
    norm_class = NanoChatRMSNorm

    def begin(self, hidden_states: Tensor) -> Tensor:
        """Normed."""
        return getattr(self, self.norm_name)(hidden_states)  # type: ignore[no-any-return]


class NanoChatForCausalLM(Gemma2ForCausalLM):
    model_class = NanoChatModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return NanoChatForCausalLM(NanoChatConfig.read(config, where), dtype)
