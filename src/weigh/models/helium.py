"""Helium, as `transformers/models/helium/modeling_helium.py` (5.23) writes it.

Llama with neighbouring dimensions rotated, and norms whose weights count in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.glm import interleave_half
from weigh.models.gptj import rotate_every_two
from weigh.models.llama import LlamaAttention, LlamaConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("helium",)


@dataclass(frozen=True)
class HeliumConfig(LlamaConfig):
    """The settings of `HeliumConfig` that shape memory."""

    vocab_size: int = 48000
    hidden_size: int = 2560
    intermediate_size: int = 7040
    num_hidden_layers: int = 24
    num_attention_heads: int = 20
    num_key_value_heads: int = 20
    head_dim: int = 128

    heads_divide_width = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The output projection is as wide as the hidden states, so the heads must be together."""
        super().settle(keys, found)
        if found["head_dim"] * found["num_attention_heads"] != found["hidden_size"]:
            hint = f"{found['num_attention_heads']} heads are {found['hidden_size']} wide."
            raise InputError(f"is {found['head_dim']}", where=f"{keys.where}: head_dim", hint=hint)


class HeliumRMSNorm(nn.RMSNorm):
    """Scaled in fp32, by a weight that is cast too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-8)
        return (self.weight.to(FLOAT32) * hidden_states).to(input_dtype)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring dimensions turned."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    cos = interleave_half(cos)
    sin = interleave_half(sin)
    q_embed = (q * cos) + (rotate_every_two(q) * sin)
    k_embed = (k * cos) + (rotate_every_two(k) * sin)
    return q_embed, k_embed


class HeliumAttention(LlamaAttention):
    def biases(self, config: Any) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return config.attention_bias, False

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Neighbours."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class HeliumDecoderLayer(LlamaDecoderLayer):
    attention_class = HeliumAttention
    norm_class = HeliumRMSNorm


class HeliumModel(LlamaModel):
    layer_class = HeliumDecoderLayer
    norm_class = HeliumRMSNorm


class HeliumForCausalLM(LlamaForCausalLM):
    model_class = HeliumModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return HeliumForCausalLM(HeliumConfig.read(config, where), dtype)
