"""Japanese GPT-NeoX, as `modeling_gpt_neox_japanese.py` of transformers 5.23 writes it: counted, not run.

GPT-NeoX without biases, but one in the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache, RotaryEmbedding
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("gpt_neox_japanese",)


@dataclass(frozen=True)
class GPTNeoXJapaneseConfig:
    """The settings of `GPTNeoXJapaneseConfig` that shape memory."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    rotary_width: int
    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width, heads = keys.size("hidden_size", default=2560), keys.size("num_attention_heads", default=32)
        head_size = keys.divides("num_attention_heads", heads, "hidden_size", width)
        return cls(
            vocab_size=keys.size("vocab_size", default=32000),
            hidden_size=width,
            num_hidden_layers=keys.size("num_hidden_layers", default=32),
            num_attention_heads=heads,
            intermediate_size=width * keys.size("intermediate_multiple_size", default=4),
            rotary_width=keys.rotary_width(head_size, "rotary_pct"),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class GPTNeoXJapaneseAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTNeoXJapaneseConfig, dtype: DType, use_bias: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.query_key_value = nn.Linear(width, 3 * width, dtype)
        self.dense = nn.Linear(width, width, dtype)
        self.dense_bias = nn.parameter((width,), dtype) if use_bias else None


class GPTNeoXJapaneseMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPTNeoXJapaneseConfig, dtype: DType) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size, dtype)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, dtype)


class GPTNeoXJapaneseLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPTNeoXJapaneseConfig, dtype: DType, layer_number: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        last = layer_number == config.num_hidden_layers - 1
        self.attention = GPTNeoXJapaneseAttention(config, dtype, use_bias=last)
        self.mlp = GPTNeoXJapaneseMLP(config, dtype)


class GPTNeoXJapaneseModel(nn.Module):
    def __init__(self, config: GPTNeoXJapaneseConfig, dtype: DType) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        layers = config.num_hidden_layers
        self.layers = nn.Stack(
            "gpt_neox_japanese.layers", layers, lambda number: GPTNeoXJapaneseLayer(config, dtype, number), layers
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, dtype)
        self.rotary_emb = RotaryEmbedding(config.rotary_width)


class GPTNeoXJapaneseForCausalLM(CausalModel):
    def __init__(self, config: GPTNeoXJapaneseConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.gpt_neox_japanese = GPTNeoXJapaneseModel(config, dtype)
        tied_to = self.gpt_neox_japanese.embed_in if config.tie_word_embeddings else None
        self.embed_out = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads = config.num_attention_heads
        return layout.full_attention(config.num_hidden_layers, heads, config.hidden_size // heads)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig.read(config, where), dtype)
