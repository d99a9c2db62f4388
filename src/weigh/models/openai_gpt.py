"""GPT, the first, as `transformers/models/openai/modeling_openai.py` (5.23) writes it: counted, not run.

GPT-2's layers without its last norm. Nothing is kept of the tokens: upstream has no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import INT64, DType
from weigh.ghost import nn
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.models.gpt2 import GPT2MLP, GPT2Attention, GPT2Config
from weigh.models.layout import NOTHING

MODEL_TYPES = ("openai-gpt",)


def read(config: Mapping[str, Any], where: str) -> GPT2Config:
    """`OpenAIGPTConfig`. Raises `InputError` for values that cannot be."""
    keys = Keys(config, where)
    width = keys.size("n_embd", "hidden_size", default=768)
    heads = keys.size("n_head", "num_attention_heads", default=12)
    keys.divides("n_head", heads, "n_embd", width)
    return GPT2Config(
        vocab_size=keys.size("vocab_size", default=40478),
        n_positions=keys.size("n_positions", "max_position_embeddings", default=512),
        n_embd=width,
        n_layer=keys.size("n_layer", "num_hidden_layers", default=12),
        n_head=heads,
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
    )


class Attention(GPT2Attention):
    """With a mask of which positions a token sees."""

    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.bias = nn.buffer((1, 1, config.n_positions, config.n_positions), dtype)


class Block(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.attn = Attention(config, dtype)
        self.ln_1 = nn.LayerNorm(config.n_embd, dtype)
        self.mlp = GPT2MLP(config, dtype)
        self.ln_2 = nn.LayerNorm(config.n_embd, dtype)


class OpenAIGPTModel(nn.Module):
    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd, dtype)
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd, dtype)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: Block(config, dtype))
        self.position_ids = nn.buffer((config.n_positions,), INT64)


class OpenAIGPTLMHeadModel(CausalModel):
    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = 0
        self.transformer = OpenAIGPTModel(config, dtype)
        tied_to = self.transformer.tokens_embed if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.n_embd, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return (LayerCache(NOTHING),) * self.config.n_layer


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return OpenAIGPTLMHeadModel(read(config, where), dtype)
