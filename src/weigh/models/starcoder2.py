"""StarCoder2, as `transformers/models/starcoder2/modeling_starcoder2.py` (5.23) writes it.

Llama with layer norms, an MLP without a gate, biases and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Probability
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("starcoder2",)


@dataclass(frozen=True)
class Starcoder2Config(DecoderConfig):
    """The settings of `Starcoder2Config` that shape memory."""

    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    sliding_window: int | None = None
    residual_dropout: Probability = 0.0
    embedding_dropout: Probability = 0.0
    use_bias: bool = True
    tie_word_embeddings: bool = True

    @property
    def attention_bias(self) -> bool:
        """All linear layers have a bias, or none."""
        return self.use_bias


class Starcoder2MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: Starcoder2Config, dtype: DType) -> None:
        super().__init__()
        embed_dim = config.hidden_size
        self.c_fc = nn.Linear(embed_dim, config.intermediate_size, dtype, config.use_bias)
        self.c_proj = nn.Linear(config.intermediate_size, embed_dim, dtype, config.use_bias)
        self.act = nn.Activation(config.hidden_act)
        self.residual_dropout = config.residual_dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = ops.dropout(hidden_states, self.residual_dropout, self.training)
        return hidden_states


class Starcoder2Attention(LlamaAttention):
    def __init__(self, config: Starcoder2Config, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.residual_dropout = config.residual_dropout

    def finish(self, attn_output: Tensor) -> Tensor:
        """Dropout."""
        return ops.dropout(attn_output, self.residual_dropout, self.training)


class Starcoder2DecoderLayer(LlamaDecoderLayer):
    attention_class = Starcoder2Attention
    mlp_class = Starcoder2MLP
    norm_class = nn.LayerNorm


class Starcoder2Model(LlamaModel):
    layer_class = Starcoder2DecoderLayer
    norm_class = nn.LayerNorm

    def __init__(self, config: Starcoder2Config, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.embedding_dropout = config.embedding_dropout

    def enter(self, inputs_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Dropout."""
        return inputs_embeds, ops.dropout(inputs_embeds, self.embedding_dropout, self.training)


class Starcoder2ForCausalLM(LlamaForCausalLM):
    model_class = Starcoder2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Starcoder2ForCausalLM(Starcoder2Config.read(config, where), dtype)
