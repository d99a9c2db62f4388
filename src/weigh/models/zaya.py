"""ZAYA1, as `transformers/models/zaya/modeling_zaya.py` (5.23) writes it.

Attention whose queries and keys pass two convolutions, half of its values a token late; experts chosen by an MLP, and
scaled residuals. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.experts import Experts
from weigh.models.hybrid import HYBRID, HYBRID_SLIDING, CountedForCausalLM, HybridConfig, HybridModel
from weigh.models.layout import State
from weigh.records import dataclass

MODEL_TYPES = ("zaya",)


@dataclass(frozen=True)
class ZayaConfig(HybridConfig):
    """The settings of `ZayaConfig` that shape memory."""

    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    sliding_window: int | None = None
    tie_word_embeddings: bool = True
    moe_intermediate_size: int = 2048
    num_experts_per_tok: int = 1
    num_experts: int = 16
    attention_bias: bool = False
    lm_head_bias: bool = False
    router_hidden_size: int = 256
    cca_time0: int = 2
    cca_time1: int = 2

    kinds = (HYBRID, HYBRID_SLIDING)

    @property
    def key_width(self) -> int:
        """Of all keys."""
        return self.num_key_value_heads * self.head_dim

    @property
    def conv_dim(self) -> int:
        """The channels of the convolutions."""
        return self.key_width + self.num_attention_heads * self.head_dim

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolutions, and the half of a value that waits for the next token."""
        kernel = self.cca_time0 + self.cca_time1 - 2
        return State("convolution", (self.conv_dim, kernel)), State("delayed value", (self.key_width // 2,))

    @property
    def leading_layers(self) -> int:
        """The first layer's router has no router before it."""
        return 1

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """One expert for a token."""
        super().settle(keys, found)
        if found["num_experts_per_tok"] != 1:
            raise InputError("is not 1", where=f"{keys.where}: num_experts_per_tok", hint="Give 1.")

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return HYBRID


class Convolution(nn.Module):
    """`nn.Conv1d` in groups, with a bias."""

    def __init__(self, channels: int, group: int, kernel: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((channels, group, kernel), dtype)
        self.bias = nn.parameter((channels,), dtype)


class ZayaCCAProjection(nn.Module):
    def __init__(self, config: ZayaConfig, dtype: DType) -> None:
        super().__init__()
        width, keys, bias = config.hidden_size, config.key_width, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, dtype, bias)
        self.k_proj = nn.Linear(width, keys, dtype, bias)
        self.v_proj_current = nn.Linear(width, keys // 2, dtype, bias)
        self.v_proj_delayed = nn.Linear(width, keys // 2, dtype, bias)
        self.conv_qk_depthwise = Convolution(config.conv_dim, 1, config.cca_time0, dtype)
        self.conv_qk_grouped = Convolution(config.conv_dim, config.head_dim, config.cca_time1, dtype)


class ZayaQKNorm(nn.Module):
    def __init__(self, config: ZayaConfig, dtype: DType) -> None:
        super().__init__()
        self.temp = nn.parameter((config.num_key_value_heads,), dtype)


class ZayaAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: ZayaConfig, dtype: DType) -> None:
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.o_proj = nn.Linear(inner, config.hidden_size, dtype, config.attention_bias)
        self.qkv_proj = ZayaCCAProjection(config, dtype)
        self.qk_norm = ZayaQKNorm(config, dtype)


class ZayaRouterMLP(nn.Module):
    def __init__(self, width: int, num_experts: int, dtype: DType) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, dtype)
        self.fc1 = nn.Linear(width, width, dtype, bias=True)
        self.fc2 = nn.Linear(width, width, dtype, bias=True)
        self.out_proj = nn.Linear(width, num_experts, dtype)


class ZayaRouter(nn.Module):
    """May choose no expert at all."""

    def __init__(self, config: ZayaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, classes = config.router_hidden_size, config.num_experts + 1
        self.down_proj = nn.Linear(config.hidden_size, width, dtype, bias=True)
        if layer_idx:
            self.router_states_scale = nn.parameter((width,), dtype)
        self.router_mlp = ZayaRouterMLP(width, classes, dtype)
        self.balancing_biases = nn.buffer((classes,), FLOAT32)


class ZayaSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: ZayaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.gate = ZayaRouter(config, dtype, layer_idx)
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.experts = Experts(config.num_experts, 1, width, inner, config.hidden_act, dtype)


class ZayaResidualScaling(nn.Module):
    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.hidden_states_scale = nn.parameter((width,), dtype)
        self.hidden_states_bias = nn.parameter((width,), dtype)
        self.residual_scale = nn.parameter((width,), dtype)
        self.residual_bias = nn.parameter((width,), dtype)


class ZayaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: ZayaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = ZayaAttention(config, dtype)
        self.mlp = ZayaSparseMoeBlock(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(width, dtype)
        self.post_attention_layernorm = nn.RMSNorm(width, dtype)
        self.post_attention_residual_scale = ZayaResidualScaling(width, dtype)
        self.post_mlp_residual_scale = ZayaResidualScaling(width, dtype)


class ZayaRotaryEmbedding(nn.Module):
    """The frequencies of half a head for each type of layer."""

    role = nn.ROTARY

    def __init__(self, config: ZayaConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        for layer_type in sorted(set(config.layer_types)):
            for name in ("inv_freq", "original_inv_freq"):
                setattr(self, f"{layer_type}_{name}", nn.buffer(((widths[layer_type] + 1) // 2,), FLOAT32))


class ZayaModel(HybridModel):
    layer_class = ZayaDecoderLayer

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.input_hidden_states_scale = nn.parameter((config.hidden_size,), dtype)
        self.input_hidden_states_bias = nn.parameter((config.hidden_size,), dtype)

    def rotary(self, config: Any) -> ZayaRotaryEmbedding:
        """Of half a head."""
        return ZayaRotaryEmbedding(config, dict.fromkeys(config.layer_types, config.head_dim // 2))


class ZayaForCausalLM(CountedForCausalLM):
    model_class = ZayaModel

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        if config.lm_head_bias:
            self.lm_head.bias = nn.parameter((config.vocab_size,), dtype)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ZayaForCausalLM(ZayaConfig.read(config, where), dtype)
