"""Gemma, as `transformers/models/gemma/modeling_gemma.py` (5.23) writes it.

Llama with wide heads, norms that scale in fp32, and embeddings that are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.llama import DecoderConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("gemma",)


@dataclass(frozen=True)
class GemmaConfig(DecoderConfig):
    """The settings of `GemmaConfig` that shape memory."""

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    attention_bias: bool = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No attention to what comes later."""
        super().settle(keys, found)
        keys.cannot_run("use_bidirectional_attention", "bidirectional attention")


class GemmaRMSNorm(nn.Module):
    role = nn.NORM

    def __init__(self, dim: Size, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((dim,), dtype)

    def _norm(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float())
        output = output * (1.0 + self.weight.float())
        return output.to(x.dtype)


class GemmaTextScaledWordEmbedding(nn.Embedding):
    def __init__(self, num_embeddings: Size, embedding_dim: Size, dtype: DType) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype)
        self.embed_scale = nn.buffer((), dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)


class GemmaDecoderLayer(LlamaDecoderLayer):
    norm_class = GemmaRMSNorm


class GemmaModel(LlamaModel):
    layer_class = GemmaDecoderLayer
    norm_class = GemmaRMSNorm
    embedding_class = GemmaTextScaledWordEmbedding


class GemmaForCausalLM(LlamaForCausalLM):
    model_class = GemmaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GemmaForCausalLM(GemmaConfig.read(config, where), dtype)
