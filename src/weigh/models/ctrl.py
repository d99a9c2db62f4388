"""CTRL, as `transformers/models/ctrl/modeling_ctrl.py` (5.23) writes it: counted, not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache, ModuleList
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("ctrl",)


@dataclass(frozen=True)
class CTRLConfig:
    """The settings of `CTRLConfig` that shape memory."""

    vocab_size: int
    n_positions: int
    n_embd: int
    dff: int
    n_layer: int
    n_head: int
    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("n_embd", "hidden_size", default=1280)
        heads = keys.size("n_head", "num_attention_heads", default=16)
        keys.divides("n_head", heads, "n_embd", width)
        return cls(
            vocab_size=keys.size("vocab_size", default=246534),
            n_positions=keys.size("n_positions", "max_position_embeddings", default=256),
            n_embd=width,
            dff=keys.size("dff", default=8192),
            n_layer=keys.size("n_layer", "num_hidden_layers", default=48),
            n_head=heads,
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class MultiHeadAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.Wq = nn.Linear(width, width, dtype, bias=True)
        self.Wk = nn.Linear(width, width, dtype, bias=True)
        self.Wv = nn.Linear(width, width, dtype, bias=True)
        self.dense = nn.Linear(width, width, dtype, bias=True)


class PointWiseFeedForward(ModuleList):
    """`nn.Sequential` of two projections around a ReLU."""

    role = nn.MLP

    def __init__(self, width: int, inner: int, dtype: DType) -> None:
        up, down = nn.Linear(width, inner, dtype, bias=True), nn.Linear(inner, width, dtype, bias=True)
        super().__init__([up, nn.Activation("relu"), down])


class EncoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: CTRLConfig, dtype: DType) -> None:
        super().__init__()
        self.multi_head_attention = MultiHeadAttention(config.n_embd, dtype)
        self.ffn = PointWiseFeedForward(config.n_embd, config.dff, dtype)
        self.layernorm1 = nn.LayerNorm(config.n_embd, dtype)
        self.layernorm2 = nn.LayerNorm(config.n_embd, dtype)


class CTRLModel(nn.Module):
    def __init__(self, config: CTRLConfig, dtype: DType) -> None:
        super().__init__()
        self.pos_encoding = nn.buffer((config.n_positions, config.n_embd), dtype)
        self.w = nn.Embedding(config.vocab_size, config.n_embd, dtype)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: EncoderLayer(config, dtype))
        self.layernorm = nn.LayerNorm(config.n_embd, dtype)


class CTRLLMHeadModel(CausalModel):
    def __init__(self, config: CTRLConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layer
        self.transformer = CTRLModel(config, dtype)
        tied_to = self.transformer.w if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.n_embd, config.vocab_size, dtype, bias=True)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.n_layer, config.n_head, config.n_embd // config.n_head)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return CTRLLMHeadModel(CTRLConfig.read(config, where), dtype)
