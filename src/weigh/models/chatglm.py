"""ChatGLM 2 and 3 and GLM-4-9B, as their repositories' own `modeling_chatglm.py` writes them: counted, not run.

Leaves out the first ChatGLM, which has the same `model_type` and other layers, and prefix encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.errors import NotModelledError
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import HEADER, Keys
from weigh.records import dataclass

MODEL_TYPES = ("chatglm",)


@dataclass(frozen=True)
class ChatGLMConfig:
    """The settings of `ChatGLMConfig` that shape memory; the defaults are `configuration_chatglm.py`'s."""

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    rmsnorm: bool = True
    post_layer_norm: bool = True

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        if config.get("inner_hidden_size") is not None:
            raise NotModelledError("the first ChatGLM", where=f"{where}: inner_hidden_size", hint=HEADER)
        keys.refuse("pre_seq_len", "a prefix encoder")
        return keys.make(cls, keys.fields(cls))

    def norm(self, dtype: DType) -> nn.Module:
        """`RMSNorm`, or `LayerNorm`."""
        return nn.RMSNorm(self.hidden_size, dtype) if self.rmsnorm else nn.LayerNorm(self.hidden_size, dtype)


class SelfAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        projected = config.kv_channels * config.num_attention_heads
        both = projected + 2 * config.kv_channels * config.key_value_heads
        bias = config.add_bias_linear
        self.query_key_value = nn.Linear(config.hidden_size, both, dtype, bias or config.add_qkv_bias)
        self.dense = nn.Linear(projected, config.hidden_size, dtype, bias)


class MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.ffn_hidden_size, config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(width, 2 * inner, dtype, bias)
        self.dense_4h_to_h = nn.Linear(inner, width, dtype, bias)


class GLMBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.input_layernorm = config.norm(dtype)
        self.self_attention = SelfAttention(config, dtype)
        self.post_attention_layernorm = config.norm(dtype)
        self.mlp = MLP(config, dtype)


class Embedding(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size, dtype)


class RotaryEmbedding(nn.Module):
    """Half of a head is rotated."""

    role = nn.ROTARY

    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.inv_freq = nn.buffer(((config.kv_channels // 2 + 1) // 2,), dtype)


class GLMTransformer(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.layers = nn.Stack("transformer.encoder.layers", config.num_layers, lambda _: GLMBlock(config, dtype))
        if config.post_layer_norm:
            self.final_layernorm = config.norm(dtype)


class ChatGLMModel(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.embedding = Embedding(config, dtype)
        self.rotary_pos_emb = RotaryEmbedding(config, dtype)
        self.encoder = GLMTransformer(config, dtype)
        self.output_layer = nn.Head(None, config.hidden_size, config.padded_vocab_size, dtype)


class ChatGLMForConditionalGeneration(CausalModel):
    def __init__(self, config: ChatGLMConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_layers
        self.transformer = ChatGLMModel(config, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_layers, config.key_value_heads, config.kv_channels)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ChatGLMForConditionalGeneration(ChatGLMConfig.read(config, where), dtype)
