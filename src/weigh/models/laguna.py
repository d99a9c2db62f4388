"""Laguna, as `transformers/models/laguna/modeling_laguna.py` (5.23) writes it; counted, not run.

Attention with a gate for each head or each number, layers that may differ in their heads, and shared experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.mimo_v2_flash import TypedRotaryEmbedding, rotary_widths
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.sparse import MoeConfig, first_dense
from weigh.records import dataclass, replace

MODEL_TYPES = ("laguna",)


@dataclass(frozen=True)
class LagunaConfig(MoeConfig):
    """The settings of `LagunaConfig` that shape memory."""

    vocab_size: int = 100352
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 40
    num_attention_heads: int = 48
    num_key_value_heads: int = 8
    head_dim: int = 128
    sliding_window: int | None = 512
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 8
    num_experts: int = 256
    attention_bias: bool = False
    gate_per_head: bool = True
    layer_types: tuple[str, ...] = DERIVED
    mlp_layer_types: tuple[str, ...] = DERIVED
    num_attention_heads_per_layer: tuple[int, ...] = DERIVED
    rotary_widths: Mapping[str, int] = DERIVED

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Windows, experts and heads."""
        return list(zip(self.layer_types, self.mlp_layer_types, self.num_attention_heads_per_layer, strict=True))

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """`gating` is true or "per-head", or something else."""
        gating = config.get("gating", True)
        return super().read({**config, "gate_per_head": gating is True or gating == "per-head"}, where)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer is dense; all have the same heads, and no windows."""
        count = found["num_hidden_layers"]
        defaults = {
            "layer_types": (FULL,) * count,
            "mlp_layer_types": first_dense(count, 1),
            "num_attention_heads_per_layer": (found["num_attention_heads"],) * count,
        }
        for name, default in defaults.items():
            found[name] = default if found[name] is None else found[name]
        super().settle(keys, found)
        keys.check_layer_types(found)
        heads = found["num_attention_heads_per_layer"]
        if len(heads) != count:
            where = f"{keys.where}: num_attention_heads_per_layer"
            raise InputError(f"has {len(heads)} entries", where=where, hint=f"Give one for each of {count} layers.")
        found["rotary_widths"] = rotary_widths(keys, found, {FULL: 0.5, SLIDING: 1.0})


class LagunaTopKRouter(nn.Module):
    def __init__(self, config: LagunaConfig, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)
        self.e_score_correction_bias = nn.parameter((config.num_experts,), dtype)
        self.e_score_correction_bias.requires_grad = False


class LagunaSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: LagunaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.gate = LagunaTopKRouter(config, dtype)
        self.shared_experts = GatedMLP(width, config.shared_expert_intermediate_size, act, dtype)


class LagunaAttention(Qwen3Attention):
    def __init__(self, config: LagunaConfig, dtype: DType, layer_idx: int) -> None:
        heads = config.num_attention_heads_per_layer[layer_idx]
        super().__init__(replace(config, num_attention_heads=heads), dtype, layer_idx)
        gates = heads if config.gate_per_head else heads * self.head_dim
        self.g_proj = nn.Linear(config.hidden_size, gates, dtype)


class LagunaDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = LagunaAttention
    moe_class: ClassVar[type[Any]] = LagunaSparseMoeBlock


class LagunaModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = LagunaDecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """By type of layer."""
        return TypedRotaryEmbedding(config.rotary_widths)


class LagunaForCausalLM(LlamaForCausalLM):
    model_class = LagunaModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LagunaForCausalLM(LagunaConfig.read(config, where), dtype)
