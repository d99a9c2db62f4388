"""DBRX, as `transformers/models/dbrx/modeling_dbrx.py` (5.23) writes it: counted, not run.

Attention and norms in one part, and experts that stand below each other in three matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Self

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache, RotaryEmbedding
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("dbrx",)


@dataclass(frozen=True, slots=True)
class DbrxConfig:
    """The settings of `DbrxConfig`, and of the two configs inside, that shape memory."""

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    kv_n_heads: int
    ffn_hidden_size: int
    moe_num_experts: int
    moe_top_k: int

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        attn, ffn = (_inner(config, name, where) for name in ("attn_config", "ffn_config"))
        width = keys.size("d_model", "hidden_size", default=2048)
        heads = keys.size("n_heads", "num_attention_heads", default=16)
        keys.divides("n_heads", heads, "d_model", width)
        kv_heads = attn.size("kv_n_heads", default=1)
        attn.divides("kv_n_heads", kv_heads, "n_heads", heads)
        keys.refuse("tie_word_embeddings", "DBRX with tied embeddings")
        return cls(
            vocab_size=keys.size("vocab_size", default=32000),
            d_model=width,
            n_heads=heads,
            n_layers=keys.size("n_layers", "num_hidden_layers", default=24),
            kv_n_heads=kv_heads,
            ffn_hidden_size=ffn.size("ffn_hidden_size", default=3584),
            moe_num_experts=ffn.size("moe_num_experts", default=4),
            moe_top_k=ffn.size("moe_top_k", default=1),
        )


def _inner(config: Mapping[str, Any], name: str, where: str) -> Keys:
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"is {found!r}, no object", where=f"{where}: {name}", hint="Give an object.")
    return Keys(found, f"{where}: {name}")


class DbrxAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        width, head_dim = config.d_model, config.d_model // config.n_heads
        self.Wqkv = nn.Linear(width, width + 2 * config.kv_n_heads * head_dim, dtype)
        self.out_proj = nn.Linear(width, width, dtype)


class DbrxExpertGLU(nn.Module):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.active_share = Fraction(config.moe_top_k, config.moe_num_experts)
        for name in ("w1", "v1", "w2"):
            shape = (config.moe_num_experts * config.ffn_hidden_size, config.d_model)
            setattr(self, name, nn.parameter(shape, dtype))


class DbrxExperts(nn.Module):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.mlp = DbrxExpertGLU(config, dtype)


class DbrxRouter(nn.Module):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.layer = nn.Linear(config.d_model, config.moe_num_experts, dtype)


class DbrxFFN(nn.Module):
    role = nn.MLP

    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.router = DbrxRouter(config, dtype)
        self.experts = DbrxExperts(config, dtype)


class DbrxNormAttentionNorm(nn.Module):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, dtype, bias=False)
        self.attn = DbrxAttention(config, dtype)
        self.norm_2 = nn.LayerNorm(config.d_model, dtype, bias=False)


class DbrxBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.norm_attn_norm = DbrxNormAttentionNorm(config, dtype)
        self.ffn = DbrxFFN(config, dtype)


class DbrxModel(nn.Module):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.rotary_emb = RotaryEmbedding(config.d_model // config.n_heads)
        self.wte = nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.blocks = nn.Stack("transformer.blocks", config.n_layers, lambda _: DbrxBlock(config, dtype))
        self.norm_f = nn.LayerNorm(config.d_model, dtype, bias=False)


class DbrxForCausalLM(CausalModel):
    def __init__(self, config: DbrxConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layers
        self.transformer = DbrxModel(config, dtype)
        self.lm_head = nn.Head(None, config.d_model, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.n_layers, config.kv_n_heads, config.d_model // config.n_heads)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return DbrxForCausalLM(DbrxConfig.read(config, where), dtype)
