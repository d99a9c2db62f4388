"""CPM-Ant, as `transformers/models/cpmant/modeling_cpmant.py` (5.23) writes it: counted, not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models import layout
from weigh.models.common import CausalModel, LayerCache
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("cpmant",)


@dataclass(frozen=True)
class CpmAntConfig:
    """The settings of `CpmAntConfig` that shape memory."""

    vocab_size: int = 30720
    hidden_size: int = 4096
    num_attention_heads: int = 32
    dim_head: int = 128
    dim_ff: int = 10240
    num_hidden_layers: int = 48
    position_bias_num_buckets: int = 512
    prompt_types: int = 32
    prompt_length: int = 32
    segment_types: int = 32

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        return keys.make(cls, keys.fields(cls))


class CpmAntAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.dim_head
        self.project_q = nn.Linear(width, inner, dtype)
        self.project_k = nn.Linear(width, inner, dtype)
        self.project_v = nn.Linear(width, inner, dtype)
        self.attention_out = nn.Linear(inner, width, dtype)


class CpmAntSelfAttentionBlock(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.layernorm_before_attention = nn.RMSNorm(config.hidden_size, dtype)
        self.self_attention = CpmAntAttention(config, dtype)


class CpmAntDenseGatedACT(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.w_0 = nn.Linear(config.hidden_size, config.dim_ff, dtype)
        self.w_1 = nn.Linear(config.hidden_size, config.dim_ff, dtype)


class CpmAntFeedForward(nn.Module):
    role = nn.MLP

    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.w_in = CpmAntDenseGatedACT(config, dtype)
        self.w_out = nn.Linear(config.dim_ff, config.hidden_size, dtype)


class CpmAntFFNBlock(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.layernorm_before_ffn = nn.RMSNorm(config.hidden_size, dtype)
        self.ffn = CpmAntFeedForward(config, dtype)


class CpmAntTransformerBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.self_att = CpmAntSelfAttentionBlock(config, dtype)
        self.ffn = CpmAntFFNBlock(config, dtype)


class CpmAntEncoder(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        layers = config.num_hidden_layers
        self.layers = nn.Stack("cpmant.encoder.layers", layers, lambda _: CpmAntTransformerBlock(config, dtype))
        self.output_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class CpmAntSegmentPositionEmbedding(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        rows = config.segment_types**2 + config.position_bias_num_buckets
        self.relative_attention_bias = nn.parameter((rows, config.num_attention_heads), dtype)


class CpmAntModel(nn.Module):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        width, prompts = config.hidden_size, config.prompt_types * config.prompt_length
        self.encoder = CpmAntEncoder(config, dtype)
        self.segment_embedding = nn.Embedding(config.segment_types, width, dtype)
        self.input_embedding = nn.Embedding(config.vocab_size + prompts, width, dtype)
        self.position_bias = CpmAntSegmentPositionEmbedding(config, dtype)


class CpmAntForCausalLM(CausalModel):
    def __init__(self, config: CpmAntConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.cpmant = CpmAntModel(config, dtype)
        self.lm_head = nn.Head(None, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_hidden_layers, config.num_attention_heads, config.dim_head)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return CpmAntForCausalLM(CpmAntConfig.read(config, where), dtype)
