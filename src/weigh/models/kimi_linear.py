"""Kimi Linear, as `transformers/models/kimi_linear/modeling_kimi_linear.py` (5.23) writes it.

Delta attention that forgets channel by channel in most layers, latent attention without positions in the others,
experts as in DeepSeek-V3. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import FULL, CausalModel, LayerCache
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3Attention, DeepseekV3MoE, latent_cache
from weigh.models.experts import GatedMLP
from weigh.models.hybrid import LINEAR, CountedForCausalLM, HybridConfig, HybridModel, settle_layer_types
from weigh.models.layout import State
from weigh.models.recurrent import Conv1d
from weigh.records import dataclass

MODEL_TYPES = ("kimi_linear",)
DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True)
class DeltaLatentConfig(HybridConfig):
    """What the configs of hybrids of delta attention and latent attention share."""

    n_shared_experts: int = 1
    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    n_group: int = 1
    topk_group: int = 1
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = True
    attention_bias: bool = False
    num_local_experts: int = 256
    moe_intermediate_size: int = 1024
    mlp_layer_types: tuple[str, ...] = DERIVED
    linear_head_dim: int = 128
    linear_num_heads: int = 32
    linear_conv_kernel_dim: int = 4

    first_dense: ClassVar[int] = 1
    """How many layers have no experts where the config does not say."""
    rope_interleave: ClassVar[bool] = False
    aliases: ClassVar[Mapping[str, str]] = {
        "moe_renormalize": "norm_topk_prob",
        "num_expert_group": "n_group",
        "num_experts": "num_local_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
    }

    @property
    def qk_head_dim(self) -> int:
        """The width of a query, and of a key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def n_routed_experts(self) -> int:
        """DeepSeek's name."""
        return self.num_local_experts

    @property
    def qkv_dim(self) -> int:
        """The width of a delta attention's queries, keys and values, each."""
        return self.linear_head_dim * self.linear_num_heads

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution, and the state, which is computed in fp32."""
        width = self.linear_head_dim
        return (
            State("convolution", (3 * self.qkv_dim, self.linear_conv_kernel_dim)),
            State("recurrence", (self.linear_num_heads, width, width), FLOAT32),
        )

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Attention, and experts."""
        return list(zip(self.layer_types, self.mlp_layer_types, strict=True))

    @property
    def leading_layers(self) -> int:
        """The dense ones."""
        return next((i for i, name in enumerate(self.mlp_layer_types) if name == SPARSE), 0)

    def layer_cache(self, layer_idx: int) -> LayerCache:
        return latent_cache(self) if self.layer_types[layer_idx] == FULL else super().layer_cache(layer_idx)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A head's width is that of its rotated part; upstream ties nothing, whatever the config says."""
        found["head_dim"] = found["qk_rope_head_dim"]
        found["tie_word_embeddings"] = False
        super().settle(keys, found)
        keys.cannot_run("output_router_logits", "the routers' own loss")
        first = keys.size("first_k_dense_replace") if keys.config.get("first_k_dense_replace") else cls.first_dense
        if keys.config.get("first_k_dense_replace") == 0:
            first = 0
        settle_layer_types(
            keys, found, (DENSE, SPARSE), lambda i: DENSE if i < first else SPARSE, key="mlp_layer_types"
        )


@dataclass(frozen=True)
class KimiLinearConfig(DeltaLatentConfig):
    """The settings of `KimiLinearConfig` that shape memory."""

    vocab_size: int = 163840
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 27

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Published configs have the delta attention's sizes, and the numbers of its layers, in an object."""
        linear = keys.config.get("linear_attn_config") or {}
        if not isinstance(linear, Mapping):
            raise InputError("is no object", where=f"{keys.where}: linear_attn_config", hint="Give an object.")
        inner = Keys(linear, f"{keys.where}: linear_attn_config")
        found["linear_head_dim"] = inner.size("head_dim", default=found["linear_head_dim"])
        found["linear_num_heads"] = inner.size("num_heads", default=found["linear_num_heads"])
        found["linear_conv_kernel_dim"] = inner.size("short_conv_kernel_size", default=found["linear_conv_kernel_dim"])
        if found["layer_types"] is None and "full_attn_layers" in linear and "kda_layers" in linear:
            full = inner.numbers("full_attn_layers")
            found["layer_types"] = tuple(
                FULL if number in full else LINEAR for number in range(1, found["num_hidden_layers"] + 1)
            )
        super().settle(keys, found)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return FULL if layer_idx and layer_idx % 4 == 0 else LINEAR


class GatedNorm(nn.Module):
    """`KimiLinearRMSNormGated`."""

    role = nn.NORM

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)


class KimiLinearForgetGate(nn.Module):
    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.f_a_proj = nn.Linear(config.hidden_size, config.linear_head_dim, dtype)
        self.f_b_proj = nn.Linear(config.linear_head_dim, config.qkv_dim, dtype)
        self.dt_bias = nn.parameter((config.qkv_dim,), dtype)
        self.A_log = nn.parameter((1, 1, config.linear_num_heads, 1), dtype)


class KimiLinearDeltaAttention(nn.Module):
    role = nn.MIXER

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.qkv_dim
        self.q_proj = nn.Linear(width, inner, dtype)
        self.k_proj = nn.Linear(width, inner, dtype)
        self.v_proj = nn.Linear(width, inner, dtype)
        self.conv1d = Conv1d(3 * inner, config.linear_conv_kernel_dim, dtype, bias=False)
        self.forget_gate = KimiLinearForgetGate(config, dtype)
        self.b_proj = nn.Linear(width, config.linear_num_heads, dtype)
        self.g_a_proj = nn.Linear(width, config.linear_head_dim, dtype)
        self.g_b_proj = nn.Linear(config.linear_head_dim, inner, dtype)
        self.o_norm = GatedNorm(config.linear_head_dim, dtype)
        self.o_proj = nn.Linear(inner, width, dtype)


class KimiLinearDecoderLayer(nn.Module):
    role = nn.BLOCK
    latent_class: ClassVar[type[Any]] = DeepseekV3Attention
    delta_class: ClassVar[type[Any]] = KimiLinearDeltaAttention

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        if config.layer_types[layer_idx] == FULL:
            self.self_attn: nn.Module = self.latent_class(config, dtype, layer_idx)
        else:
            self.self_attn = self.delta_class(config, dtype)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp: nn.Module = DeepseekV3MoE(config, dtype)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)


class KimiLinearModel(HybridModel):
    layer_class: ClassVar[type[Any]] = KimiLinearDecoderLayer

    def rotary(self, config: Any) -> Any:
        """None."""


class KimiLinearForCausalLM(CountedForCausalLM):
    model_class = KimiLinearModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return KimiLinearForCausalLM(KimiLinearConfig.read(config, where), dtype)
