"""LFM3, as `transformers/models/lfm3/modeling_lfm3.py` (5.23) writes it.

Short convolutions, sliding and full attention in turn, norms before and after. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import Keys
from weigh.models.hybrid import CONV, CountedForCausalLM, HybridModel
from weigh.models.lfm2 import Lfm2MLP, Lfm2ShortConv, ShortConvConfig
from weigh.models.qwen3 import Qwen3Attention
from weigh.records import dataclass

MODEL_TYPES = ("lfm3",)


@dataclass(frozen=True)
class Lfm3Config(ShortConvConfig):
    """The settings of `Lfm3Config` that shape memory."""

    vocab_size: int = 128000
    hidden_size: int = 2048
    intermediate_size: int = 7680
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    sliding_window: int | None = 256
    conv_L_cache: int = 7  # noqa: N815  upstream's name
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True
    attention_bias: bool = False

    kinds = (FULL, SLIDING, CONV)
    rope_types = (*ShortConvConfig.rope_types, "proportional")

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        if layer_idx % 4 == 2:
            return FULL
        return SLIDING if layer_idx and layer_idx % 4 == 0 else CONV


class Lfm3Attention(Qwen3Attention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        if config.use_attention_gate:
            self.g_proj = nn.Linear(config.hidden_size, config.num_attention_heads, dtype)


class Lfm3DecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Lfm3Config, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        if config.layer_types[layer_idx] == CONV:
            self.conv = Lfm2ShortConv(config, dtype)
        else:
            self.self_attn = Lfm3Attention(config, dtype, layer_idx)
        self.feed_forward = Lfm2MLP(width, config.intermediate_size, dtype)
        self.operator_norm = nn.RMSNorm(width, dtype)
        self.ffn_norm = nn.RMSNorm(width, dtype)
        if config.use_sandwich_norm:
            self.post_operator_norm = nn.RMSNorm(width, dtype)
            self.post_ffn_norm = nn.RMSNorm(width, dtype)


class Lfm3RotaryEmbedding(nn.Module):
    """The frequencies of each type of attention that there is."""

    role = nn.ROTARY

    def __init__(self, config: Lfm3Config) -> None:
        super().__init__()
        for layer_type in (FULL, SLIDING):
            if layer_type in config.layer_types:
                for name in ("inv_freq", "original_inv_freq"):
                    setattr(self, f"{layer_type}_{name}", nn.buffer(((config.head_dim + 1) // 2,), FLOAT32))


class Lfm3Model(HybridModel):
    layer_class = Lfm3DecoderLayer
    norm_name = "embedding_norm"

    def rotary(self, config: Any) -> Lfm3RotaryEmbedding:
        """Of two types."""
        return Lfm3RotaryEmbedding(config)


class Lfm3ForCausalLM(CountedForCausalLM):
    model_class = Lfm3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Lfm3ForCausalLM(Lfm3Config.read(config, where), dtype)
