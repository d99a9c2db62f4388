"""xLSTM, as `transformers/models/xlstm/modeling_xlstm.py` (5.23) writes it, without the package xlstm.

A matrix memory for every head. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.models.layout import State
from weigh.records import dataclass

MODEL_TYPES = ("xlstm",)


@dataclass(frozen=True)
class XLSTMConfig:
    """The settings of `xLSTMConfig` that shape memory."""

    vocab_size: int = 50304
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_heads: int = 8
    use_bias: bool = False
    tie_word_embeddings: bool = False
    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0
    ffn_proj_factor: float = 2.667
    ffn_round_up_to_multiple_of: int = 64

    @property
    def qk_dim(self) -> int:
        """The width of all queries, and of all keys."""
        return int(self.hidden_size * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        """The width of all values."""
        return int(self.hidden_size * self.v_dim_factor)

    @property
    def up_proj_dim(self) -> int:
        """The width inside the MLP."""
        return _round_up(self.hidden_size * self.ffn_proj_factor, self.ffn_round_up_to_multiple_of)

    @property
    def states(self) -> tuple[State, ...]:
        """A head's memory, its normaliser and its maximum; the cache rounds their widths up."""
        heads = self.num_heads
        queries = _round_up(self.hidden_size * self.qk_dim_factor, 64) // heads
        values = _round_up(self.hidden_size * self.v_dim_factor, 64) // heads
        return (
            State("memory", (heads, queries, values)),
            State("normaliser", (heads, queries)),
            State("maximum", (heads, 1)),
        )

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        aliases = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
        renamed = {aliases[k]: v for k, v in config.items() if k in aliases and v is not None}
        keys = Keys(renamed | {k: v for k, v in config.items() if k not in aliases and v is not None}, where)
        keys.refuse("weight_mode", "fused weights of xLSTM", unless="single")
        return keys.make(cls, keys.fields(cls))


def _round_up(x: float, multiple: int) -> int:
    return int(((x + multiple - 1) // multiple) * multiple)


class XLSTMRMSNorm(nn.Module):
    role = nn.NORM

    def __init__(self, width: int, dtype: DType, bias: bool) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)
        if bias:
            self.bias = nn.parameter((width,), dtype)


class XLSTMLayer(nn.Module):
    role = nn.MIXER

    def __init__(self, config: XLSTMConfig, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.use_bias
        self.q = nn.Linear(width, config.qk_dim, dtype, bias)
        self.k = nn.Linear(width, config.qk_dim, dtype, bias)
        self.v = nn.Linear(width, config.v_dim, dtype, bias)
        self.ogate_preact = nn.Linear(width, config.v_dim, dtype, bias)
        self.igate_preact = nn.Linear(width, config.num_heads, dtype, bias=True)
        self.fgate_preact = nn.Linear(width, config.num_heads, dtype, bias=True)
        self.multihead_norm = XLSTMRMSNorm(config.v_dim // config.num_heads * config.num_heads, dtype, bias)
        self.out_proj = nn.Linear(config.v_dim, width, dtype, bias)


class XLSTMFeedForward(nn.Module):
    role = nn.MLP

    def __init__(self, config: XLSTMConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.up_proj_dim, config.use_bias
        self.proj_up_gate = nn.Linear(width, inner, dtype, bias)
        self.proj_up = nn.Linear(width, inner, dtype, bias)
        self.proj_down = nn.Linear(inner, width, dtype, bias)


class XLSTMBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: XLSTMConfig, dtype: DType) -> None:
        super().__init__()
        self.norm_mlstm = XLSTMRMSNorm(config.hidden_size, dtype, config.use_bias)
        self.mlstm_layer = XLSTMLayer(config, dtype)
        self.norm_ffn = XLSTMRMSNorm(config.hidden_size, dtype, config.use_bias)
        self.ffn = XLSTMFeedForward(config, dtype)


class XLSTMModel(nn.Module):
    def __init__(self, config: XLSTMConfig, dtype: DType) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.blocks = nn.Stack("backbone.blocks", config.num_hidden_layers, lambda _index: XLSTMBlock(config, dtype))
        self.out_norm = XLSTMRMSNorm(config.hidden_size, dtype, bias=False)


class XLSTMForCausalLM(CausalModel):
    takes_positions = False

    def __init__(self, config: XLSTMConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.backbone = XLSTMModel(config, dtype)
        tied = self.backbone.embeddings if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return (LayerCache(layout.RECURRENT, states=self.config.states),) * self.config.num_hidden_layers


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return XLSTMForCausalLM(XLSTMConfig.read(config, where), dtype)
