"""Qwen, the first, as its repositories' own `modeling_qwen.py` writes it (Qwen/Qwen-7B): counted, not run.

A Llama whose attention has one projection with a bias, and whose config says the width of gate and up together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys

MODEL_TYPES = ("qwen",)

LOGN_POSITIONS = 32767
"""Positions for which every layer keeps the factor of its queries."""


@dataclass(frozen=True)
class QWenConfig:
    """The settings of `QWenConfig` that shape memory; the defaults are `configuration_qwen.py`'s."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    no_bias: bool = True
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        made = keys.make(cls, keys.fields(cls))
        if made.kv_channels * made.num_attention_heads != made.hidden_size:
            hint = f"{made.num_attention_heads} heads share {made.hidden_size}."
            raise InputError(f"is {made.kv_channels}", where=f"{where}: kv_channels", hint=hint)
        return made


class QWenAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.masked_bias = nn.buffer((), dtype)
        self.logn_tensor = nn.buffer((1, LOGN_POSITIONS, 1, 1), dtype)
        self.c_attn = nn.Linear(width, 3 * width, dtype, bias=True)
        self.c_proj = nn.Linear(width, width, dtype, bias=not config.no_bias)


class QWenMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(width, inner, dtype, bias)
        self.w2 = nn.Linear(width, inner, dtype, bias)
        self.c_proj = nn.Linear(inner, width, dtype, bias)


class QWenBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = nn.RMSNorm(config.hidden_size, dtype)
        self.attn = QWenAttention(config, dtype)
        self.ln_2 = nn.RMSNorm(config.hidden_size, dtype)
        self.mlp = QWenMLP(config, dtype)


class QWenRotaryEmbedding(nn.Module):
    role = nn.ROTARY

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.inv_freq = nn.buffer((config.kv_channels // 2,), FLOAT32)


class QWenModel(nn.Module):
    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.rotary_emb = QWenRotaryEmbedding(config)
        self.h = nn.Stack("transformer.h", config.num_hidden_layers, lambda _: QWenBlock(config, dtype))
        self.ln_f = nn.RMSNorm(config.hidden_size, dtype)


class QWenLMHeadModel(CausalModel):
    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.transformer = QWenModel(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_hidden_layers, config.num_attention_heads, config.kv_channels)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return QWenLMHeadModel(QWenConfig.read(config, where), dtype)
