"""BitNet, as `transformers/models/bitnet/modeling_bitnet.py` (5.23) writes it, its weights unpacked.

Llama with a norm before the last projection of attention and of MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("bitnet",)


@dataclass(frozen=True)
class BitNetConfig(DecoderConfig):
    """The settings of `BitNetConfig` that shape memory."""

    vocab_size: int = 128256
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_hidden_layers: int = 30
    num_attention_heads: int = 20
    num_key_value_heads: int = 5
    hidden_act: str = "relu2"
    attention_bias: bool = False


class BitNetMLP(LlamaMLP):
    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.ffn_sub_norm = nn.RMSNorm(config.intermediate_size, dtype)

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor = self.down_proj(self.ffn_sub_norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))
        return down_proj


class BitNetAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.attn_sub_norm = nn.RMSNorm(config.hidden_size, dtype)

    def gather(self, attn_output: Tensor) -> Tensor:
        """Normed."""
        return self.attn_sub_norm(attn_output)  # type: ignore[no-any-return]


class BitNetDecoderLayer(LlamaDecoderLayer):
    attention_class = BitNetAttention
    mlp_class = BitNetMLP


class BitNetModel(LlamaModel):
    layer_class = BitNetDecoderLayer


class BitNetForCausalLM(LlamaForCausalLM):
    model_class = BitNetModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BitNetForCausalLM(BitNetConfig.read(config, where), dtype)
