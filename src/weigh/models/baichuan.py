"""Baichuan and Baichuan 2, as their repositories' own `modeling_baichuan.py` writes them: counted, not run.

Llama with one projection for queries, keys and values. Leaves out the tables that the releases keep beside their
parameters: those of 7B rotate, those of 13B have ALiBi, and no config says which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("baichuan",)


@dataclass(frozen=True)
class BaichuanConfig:
    """The settings of `BaichuanConfig` that shape memory; the defaults are those of Baichuan2-7B."""

    vocab_size: int = 125696
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        made = keys.make(cls, keys.fields(cls))
        keys.divides("num_attention_heads", made.num_attention_heads, "hidden_size", made.hidden_size)
        return made


class BaichuanAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: BaichuanConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.W_pack = nn.Linear(width, 3 * width, dtype)
        self.o_proj = nn.Linear(width, width, dtype)


class MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: BaichuanConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, dtype)
        self.down_proj = nn.Linear(inner, width, dtype)
        self.up_proj = nn.Linear(width, inner, dtype)


class BaichuanLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: BaichuanConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, dtype)
        self.mlp = MLP(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class BaichuanModel(nn.Module):
    def __init__(self, config: BaichuanConfig, dtype: DType) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.Stack("model.layers", config.num_hidden_layers, lambda _: BaichuanLayer(config, dtype))
        self.norm = nn.RMSNorm(config.hidden_size, dtype)


class BaichuanForCausalLM(CausalModel):
    def __init__(self, config: BaichuanConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.model = BaichuanModel(config, dtype)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads = config.num_attention_heads
        return layout.full_attention(config.num_hidden_layers, heads, config.hidden_size // heads)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BaichuanForCausalLM(BaichuanConfig.read(config, where), dtype)
