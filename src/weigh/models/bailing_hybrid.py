"""Ling and Ring of the hybrid kind, as `transformers/models/bailing_hybrid/modeling_bailing_hybrid.py` (5.23) has them.

Kimi Linear with a wider forget gate, and a gate on the latent attention. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, CausalModel, RotaryEmbedding
from weigh.models.config import Keys
from weigh.models.deepseek_v3 import DeepseekV3Attention
from weigh.models.hybrid import LINEAR, CountedForCausalLM
from weigh.models.kimi_linear import DeltaLatentConfig, GatedNorm, KimiLinearDecoderLayer, KimiLinearModel
from weigh.models.recurrent import Conv1d
from weigh.records import dataclass

MODEL_TYPES = ("bailing_hybrid",)


@dataclass(frozen=True)
class BailingHybridConfig(DeltaLatentConfig):
    """The settings of `BailingHybridConfig` that shape memory."""

    vocab_size: int = 157184
    hidden_size: int = 2560
    intermediate_size: int = 6144
    moe_intermediate_size: int = 768
    num_hidden_layers: int = 42
    n_group: int = 8
    topk_group: int = 4
    num_local_experts: int = 512

    first_dense = 2
    aliases: ClassVar[Mapping[str, str]] = {
        **DeltaLatentConfig.aliases,
        "head_dim": "linear_head_dim",
        "short_conv_kernel_size": "linear_conv_kernel_dim",
    }

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Both attentions have the same number of heads; queries are not compressed."""
        found["linear_num_heads"] = found["num_attention_heads"]
        found["q_lora_rank"] = None
        super().settle(keys, found)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return LINEAR if (layer_idx + 1) % keys.size("layer_group_size", default=6) else FULL


class BailingHybridAttention(DeepseekV3Attention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.g_proj = nn.Linear(config.hidden_size, config.num_attention_heads, dtype)


class BailingHybridForgetGate(nn.Module):
    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.A_log = nn.parameter((config.linear_num_heads,), dtype)
        self.dt_bias = nn.parameter((config.qkv_dim,), dtype)
        self.f_proj = nn.Linear(config.hidden_size, config.qkv_dim, dtype)


class BailingHybridDeltaAttention(nn.Module):
    role = nn.MIXER

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.qkv_dim
        self.q_proj = nn.Linear(width, inner, dtype)
        self.k_proj = nn.Linear(width, inner, dtype)
        self.v_proj = nn.Linear(width, inner, dtype)
        self.conv1d = Conv1d(3 * inner, config.linear_conv_kernel_dim, dtype, bias=False)
        self.forget_gate = BailingHybridForgetGate(config, dtype)
        self.b_proj = nn.Linear(width, config.linear_num_heads, dtype)
        self.o_norm = GatedNorm(config.linear_head_dim, dtype)
        self.o_proj = nn.Linear(inner, width, dtype)
        self.g_proj = nn.Linear(width, inner, dtype)


class BailingHybridDecoderLayer(KimiLinearDecoderLayer):
    latent_class = BailingHybridAttention
    delta_class = BailingHybridDeltaAttention


class BailingHybridModel(KimiLinearModel):
    layer_class = BailingHybridDecoderLayer

    def rotary(self, config: Any) -> RotaryEmbedding:
        """Of the latent attention."""
        return RotaryEmbedding(config.head_dim)


class BailingHybridForCausalLM(CountedForCausalLM):
    model_class = BailingHybridModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BailingHybridForCausalLM(BailingHybridConfig.read(config, where), dtype)
