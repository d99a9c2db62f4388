"""GLM, as `transformers/models/glm/modeling_glm.py` (5.23) writes it.

Llama with Phi-3's MLP, biases of queries, keys and values, and half of each head rotated, neighbours with neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.gptj import rotate_every_two
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.phi3 import Phi3MLP, cut
from weigh.records import dataclass

MODEL_TYPES = ("glm",)


@dataclass(frozen=True)
class GlmConfig(DecoderConfig):
    """The settings of `GlmConfig` that shape memory."""

    vocab_size: int = 151552
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_key_value_heads: int = 2
    head_dim: int = 128
    attention_bias: bool = True
    rotary_width: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Half of a head is rotated, if the config does not say more."""
        super().settle(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.5)


def interleave_half(x: Tensor) -> Tensor:
    """`x[..., : width // 2].repeat_interleave(2, dim=-1)`: the slice expanded and copied."""
    return ops.repeat_along(x.narrow(-1, x.shape[-1] // 2), x.ndim - 1, 2)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring dimensions of the first part of the width turned, the rest appended, even where there is none."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    return turn_neighbours(q, k, interleave_half(cos), interleave_half(sin))


def turn_neighbours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the first dimensions turned, as many as there are cosines."""
    rotary_dim = cos.shape[-1]
    q_rot, q_pass = cut(q, rotary_dim)
    k_rot, k_pass = cut(k, rotary_dim)
    q_embed = (q_rot * cos) + (rotate_every_two(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate_every_two(k_rot) * sin)
    q_embed = ops.cat([q_embed, q_pass], -1)
    k_embed = ops.cat([k_embed, k_pass], -1)
    return q_embed, k_embed


class GlmAttention(LlamaAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return config.attention_bias, False

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Neighbours, in a part of the width."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class GlmDecoderLayer(LlamaDecoderLayer):
    attention_class = GlmAttention
    mlp_class = Phi3MLP


class GlmModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = GlmDecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of the width."""
        return RotaryEmbedding(config.rotary_width)


class GlmForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = GlmModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GlmForCausalLM(GlmConfig.read(config, where), dtype)
