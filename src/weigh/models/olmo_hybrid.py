"""OLMo Hybrid, as `transformers/models/olmo_hybrid/modeling_olmo_hybrid.py` (5.23) writes it.

Gated delta nets in three layers of four, OLMo 3's attention in the others. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.delta_net import DeltaNetConfig, GatedNorm
from weigh.models.hybrid import LINEAR, CountedForCausalLM, HybridModel
from weigh.models.llama import LlamaMLP
from weigh.models.olmo2 import Olmo2Attention, Olmo2RMSNorm
from weigh.models.recurrent import Conv1d
from weigh.records import dataclass

MODEL_TYPES = ("olmo_hybrid",)


@dataclass(frozen=True)
class OlmoHybridConfig(DeltaNetConfig):
    """The settings of `OlmoHybridConfig` that shape memory."""

    vocab_size: int = 100352
    hidden_size: int = 3840
    intermediate_size: int = 11008
    num_attention_heads: int = 30
    linear_num_key_heads: int = DERIVED
    linear_num_value_heads: int = DERIVED
    linear_key_head_dim: int = DERIVED
    linear_value_head_dim: int = DERIVED
    turned: bool = False
    """Positions are turned: unless the angle is null."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The delta nets have as many heads as the attention, keys narrower and values wider than it."""
        heads, count = found["num_attention_heads"], found["num_hidden_layers"]
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            found[name] = found[name] or heads
        keys_width = int(0.75 * found["hidden_size"] / found["linear_num_key_heads"])
        found["linear_key_head_dim"] = found["linear_key_head_dim"] or keys_width
        found["linear_value_head_dim"] = found["linear_value_head_dim"] or 2 * found["linear_key_head_dim"]
        if found["layer_types"] is None and count < 4:
            found["layer_types"] = (LINEAR,) * (count - 1) + (FULL,)
        super().settle(keys, found)
        parameters = keys.config.get("rope_scaling") or keys.config.get("rope_parameters") or {}
        found["turned"] = parameters.get("rope_theta", keys.config.get("rope_theta", 10000.0)) is not None

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return FULL if layer_idx % 4 == 3 else LINEAR


class OlmoHybridGatedDeltaNet(nn.Module):
    role = nn.MIXER

    def __init__(self, config: OlmoHybridConfig, dtype: DType) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.linear_num_value_heads
        self.q_proj = nn.Linear(width, config.key_dim, dtype)
        self.k_proj = nn.Linear(width, config.key_dim, dtype)
        self.v_proj = nn.Linear(width, config.value_dim, dtype)
        self.a_proj = nn.Linear(width, heads, dtype)
        self.b_proj = nn.Linear(width, heads, dtype)
        self.g_proj = nn.Linear(width, config.value_dim, dtype)
        self.o_proj = nn.Linear(config.value_dim, width, dtype)
        self.conv1d = Conv1d(config.conv_dim, config.linear_conv_kernel_dim, dtype, bias=False)
        self.A_log = nn.parameter((heads,), dtype)
        self.dt_bias = nn.parameter((heads,), dtype)
        self.o_norm = GatedNorm(config.linear_value_head_dim, dtype)


class OlmoHybridAttentionDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Olmo2Attention(config, dtype, layer_idx)
        self.mlp = LlamaMLP(config, dtype)
        self.post_attention_layernorm = Olmo2RMSNorm(config.hidden_size, dtype)
        self.post_feedforward_layernorm = Olmo2RMSNorm(config.hidden_size, dtype)


class OlmoHybridLinearAttentionDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.mlp = LlamaMLP(config, dtype)
        self.input_layernorm = Olmo2RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = Olmo2RMSNorm(config.hidden_size, dtype)
        self.linear_attn = OlmoHybridGatedDeltaNet(config, dtype)


class OlmoHybridModel(HybridModel):
    norm_class = Olmo2RMSNorm

    def make_layer(self, config: Any, dtype: DType, layer_idx: int) -> nn.Module:
        """Of one kind or the other, with norms in different places."""
        if config.layer_types[layer_idx] == LINEAR:
            return OlmoHybridLinearAttentionDecoderLayer(config, dtype)
        return OlmoHybridAttentionDecoderLayer(config, dtype, layer_idx)

    def rotary(self, config: Any) -> Any:
        """None where the config says that there is no angle."""
        return RotaryEmbedding(config.head_dim) if config.turned else None


class OlmoHybridForCausalLM(CountedForCausalLM):
    model_class = OlmoHybridModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return OlmoHybridForCausalLM(OlmoHybridConfig.read(config, where), dtype)
