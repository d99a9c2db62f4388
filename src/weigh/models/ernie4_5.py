"""ERNIE 4.5, as `transformers/models/ernie4_5/modeling_ernie4_5.py` (5.23) writes it.

Llama with one setting for all biases, and neighbouring dimensions rotated in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.glm import interleave_half
from weigh.models.gptj import rotate_every_two
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.olmo2 import Olmo2RotaryEmbedding
from weigh.records import dataclass

MODEL_TYPES = ("ernie4_5",)


@dataclass(frozen=True)
class Ernie45Config(DecoderConfig):
    """The settings of `Ernie4_5Config` that shape memory."""

    vocab_size: int = 103424
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 18
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    tie_word_embeddings: bool = True
    use_bias: bool = False

    @property
    def attention_bias(self) -> bool:
        """Of every projection."""
        return self.use_bias

    @property
    def mlp_bias(self) -> bool:
        """Of every projection."""
        return self.use_bias

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Attention drops nothing."""
        found["use_bias"] = bool(found["use_bias"])
        super().settle(keys, found)
        found["attention_dropout"] = 0.0


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring dimensions turned, in fp32, and cast back."""
    original_dtype = q.dtype
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    cos = interleave_half(cos)
    sin = interleave_half(sin)
    q_embed = (q.float() * cos) + (rotate_every_two(q).float() * sin)
    k_embed = (k.float() * cos) + (rotate_every_two(k).float() * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)


class Ernie45Attention(LlamaAttention):
    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Neighbours, in fp32."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class Ernie45DecoderLayer(LlamaDecoderLayer):
    attention_class = Ernie45Attention


class Ernie45Model(LlamaModel):
    layer_class = Ernie45DecoderLayer

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """In fp32."""
        return Olmo2RotaryEmbedding(config.head_dim)


class Ernie45ForCausalLM(LlamaForCausalLM):
    model_class = Ernie45Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Ernie45ForCausalLM(Ernie45Config.read(config, where), dtype)
