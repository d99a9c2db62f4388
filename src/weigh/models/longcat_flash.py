"""LongCat-Flash, as `transformers/models/longcat_flash/modeling_longcat_flash.py` (5.23) writes it; counted, not run.

Every layer has two latent attentions and two dense MLPs beside one mixture of experts, some of which do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel, LayerCache, ModuleList
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3ForCausalLM,
    DeepseekV3Model,
    LatentConfig,
    latent_cache,
)
from weigh.models.experts import GatedMLP
from weigh.records import dataclass

MODEL_TYPES = ("longcat_flash",)
TWICE = range(2)


@dataclass(frozen=True)
class LongcatFlashConfig(LatentConfig):
    """The settings of `LongcatFlashConfig` that shape memory."""

    vocab_size: int = 131072
    hidden_size: int = 6144
    num_hidden_layers: int = 28
    num_attention_heads: int = 64
    num_key_value_heads: int = DERIVED
    head_dim: int = 64
    ffn_hidden_size: int = 12288
    q_lora_rank: int = 1536
    n_group: int | None = None
    moe_topk: int = 12
    n_routed_experts: int = 512
    zero_expert_num: Count = 256
    expert_ffn_hidden_size: int = 2048
    router_bias: bool = False

    aliases: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_hidden_layers",
        "num_local_experts": "n_routed_experts",
        "num_experts_per_tok": "moe_topk",
        "intermediate_size": "ffn_hidden_size",
        "moe_intermediate_size": "expert_ffn_hidden_size",
    }

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """Upstream counts the layers that keep a cache as `num_hidden_layers`: two for each of `num_layers`."""
        layers = config.get("num_hidden_layers")
        config = {key: value for key, value in config.items() if key != "num_hidden_layers"}
        if "num_layers" not in config and isinstance(layers, int):
            config["num_layers"] = layers // 2
        return super().read(config, where)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The rotated width has a key of its own."""
        rotated = found["head_dim"]
        super().settle(keys, found)
        found["head_dim"] = rotated


class LongcatFlashTopkRouter(nn.Module):
    def __init__(self, config: LongcatFlashConfig, dtype: DType) -> None:
        super().__init__()
        experts = config.n_routed_experts + config.zero_expert_num
        self.e_score_correction_bias = nn.buffer((experts,), dtype)
        self.classifier = nn.Linear(config.hidden_size, experts, dtype, config.router_bias)


class LongcatFlashExperts(nn.Module):
    """The share that a token is computed with is an average, over choices that are even.

    Those that do nothing have gates all the same, which no token is computed with.
    """

    def __init__(self, config: LongcatFlashConfig, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.expert_ffn_hidden_size
        total = experts + config.zero_expert_num
        self.active_share = Fraction(config.moe_topk, total)
        self.gated_share = Fraction(experts, total)
        self.gate_up_proj = nn.parameter((total, 2 * inner, width), dtype)
        self.down_proj = nn.parameter((experts, width, inner), dtype)

    def active_share_of(self, parameter: str) -> Fraction | int:
        """Of the gates, that of the experts that do something."""
        return self.active_share * (self.gated_share if parameter == "gate_up_proj" else 1)


class LongcatFlashMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: LongcatFlashConfig, dtype: DType) -> None:
        super().__init__()
        self.experts = LongcatFlashExperts(config, dtype)
        self.router = LongcatFlashTopkRouter(config, dtype)


class LongcatFlashDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: LongcatFlashConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.ffn_hidden_size, config.hidden_act
        self.mlp = LongcatFlashMoE(config, dtype)
        self.self_attn = ModuleList([DeepseekV3Attention(config, dtype, layer_idx * 2 + i) for i in TWICE])
        self.mlps = ModuleList([GatedMLP(width, inner, act, dtype) for _ in TWICE])
        self.input_layernorm = ModuleList([nn.RMSNorm(width, dtype) for _ in TWICE])
        self.post_attention_layernorm = ModuleList([nn.RMSNorm(width, dtype) for _ in TWICE])


class LongcatFlashModel(DeepseekV3Model):
    layer_class = LongcatFlashDecoderLayer


class LongcatFlashForCausalLM(DeepseekV3ForCausalLM):
    model_class = LongcatFlashModel
    forward = CausalModel.forward

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Two for each layer."""
        return (latent_cache(self.config),) * (2 * self.cache_layers)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LongcatFlashForCausalLM(LongcatFlashConfig.read(config, where), dtype)
