"""Zamba, as `transformers/models/zamba/modeling_zamba.py` (5.23) writes it.

Mamba in heads everywhere; some layers first ask a transformer that all of them share. Counted, not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.experts import GatedMLP
from weigh.models.hybrid import HYBRID, LINEAR, CountedForCausalLM, HybridModel, tied_to
from weigh.models.layout import State
from weigh.models.mamba import mamba_states
from weigh.models.recurrent import Conv1d
from weigh.models.zamba2 import SharedBlockConfig
from weigh.records import dataclass

MODEL_TYPES = ("zamba",)


@dataclass(frozen=True)
class ZambaConfig(SharedBlockConfig):
    """The settings of `ZambaConfig` that shape memory."""

    hidden_size: int = 3712
    attention_hidden_size: int = DERIVED
    intermediate_size: int = 14848
    num_hidden_layers: int = 76
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    n_mamba_heads: int = 2
    attn_layer_period: int = 6
    attn_layer_offset: Count = 4
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int = DERIVED
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"layers_block_type": "layer_types", "attention_head_dim": "head_dim"}

    @property
    def mamba_width(self) -> int:
        """The width of a mixer."""
        return self.mamba_expand * self.hidden_size

    @property
    def states(self) -> tuple[State, ...]:
        """Mamba's."""
        return mamba_states(self.mamba_width, self.mamba_d_conv, self.mamba_d_state)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The attention is twice as wide as the model."""
        wide, heads = 2 * found["hidden_size"], found["num_attention_heads"]
        found["attention_hidden_size"] = found["attention_hidden_size"] or wide
        found["head_dim"] = found["head_dim"] or wide // heads
        found["mamba_dt_rank"] = found["mamba_dt_rank"] or math.ceil(found["hidden_size"] / 16)
        super().settle(keys, found)
        keys.divides("n_mamba_heads", found["n_mamba_heads"], "mamba_expand", found["mamba_expand"] * wide // 2)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        """Attention in the third layer, and then once in a period."""
        shared = (layer_idx - 3) % found["attn_layer_period"] == found["attn_layer_offset"]
        return HYBRID if layer_idx == 2 or (layer_idx > 2 and shared) else LINEAR


class ZambaAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: ZambaConfig, dtype: DType) -> None:
        super().__init__()
        wide, heads, kv_heads = config.attention_hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(wide, heads * config.head_dim, dtype)
        self.k_proj = nn.Linear(wide, kv_heads * config.head_dim, dtype)
        self.v_proj = nn.Linear(wide, kv_heads * config.head_dim, dtype)
        self.o_proj = nn.Linear(heads * config.head_dim, config.hidden_size, dtype)


class ZambaMambaMixer(nn.Module):
    role = nn.MIXER

    def __init__(self, config: ZambaConfig, dtype: DType) -> None:
        super().__init__()
        inner, bias = config.mamba_width, config.mamba_proj_bias
        state_size, rank = config.mamba_d_state, config.mamba_dt_rank
        heads = config.n_mamba_heads
        width = inner // heads
        self.conv1d = Conv1d(inner, config.mamba_d_conv, dtype, config.mamba_conv_bias)
        self.in_proj = nn.Linear(config.hidden_size, inner * 2, dtype, bias)
        self.x_proj_weight = nn.parameter((heads, rank + state_size * 2, width), dtype)
        self.dt_proj_weight = nn.parameter((heads, width, rank), dtype)
        self.dt_proj_bias = nn.parameter((heads, width), dtype)
        self.A_log = nn.parameter((heads, width, state_size), dtype)
        self.D = nn.parameter((heads, width), dtype)
        self.out_proj = nn.Linear(inner, config.hidden_size, dtype, bias)


class ZambaAttentionDecoderLayer(nn.Module):
    def __init__(self, config: ZambaConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = ZambaAttention(config, dtype)
        self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = nn.RMSNorm(config.attention_hidden_size, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class ZambaMambaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: ZambaConfig, dtype: DType) -> None:
        super().__init__()
        self.mamba = ZambaMambaMixer(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class ZambaHybridLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: ZambaConfig, dtype: DType, shared_transf: nn.Module) -> None:
        super().__init__()
        self.shared_transf = shared_transf
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, dtype)
        self.mamba_decoder = ZambaMambaDecoderLayer(config, dtype)


class ZambaModel(HybridModel):
    norm_name = "final_layernorm"

    def __init__(self, config: Any, dtype: DType) -> None:
        self.shared: list[ZambaAttentionDecoderLayer] = []
        super().__init__(config, dtype)

    def make_layer(self, config: Any, dtype: DType, layer_idx: int) -> nn.Module:
        """With or without the shared transformer."""
        if config.layer_types[layer_idx] == LINEAR:
            return ZambaMambaDecoderLayer(config, dtype)
        if self.shared and config.shares:
            return ZambaHybridLayer(config, dtype, tied_to(self.shared[0]))
        self.shared.append(ZambaAttentionDecoderLayer(config, dtype))
        return ZambaHybridLayer(config, dtype, self.shared[-1])

    def rotary(self, config: Any) -> Any:
        """None."""


class ZambaForCausalLM(CountedForCausalLM):
    model_class = ZambaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ZambaForCausalLM(ZambaConfig.read(config, where), dtype)
