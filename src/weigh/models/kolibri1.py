"""Kolibri 1, as `transformers/models/kolibri1/modeling_kolibri1.py` (5.23) writes it; counted, not run.

Qwen3's attention with four windows to one full layer, norms before and after, and a shared expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("kolibri1",)


@dataclass(frozen=True)
class Kolibri1Config(MoeConfig):
    """The settings of `Kolibri1Config` that shape memory."""

    vocab_size: int = 128000
    hidden_size: int = 2560
    num_hidden_layers: int = 50
    num_attention_heads: int = 48
    num_key_value_heads: int = 4
    head_dim: int = 128
    sliding_window: int | None = 513
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 6
    num_experts: int = 384
    layer_types: tuple[str, ...] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fifth layer has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            layers = range(found["num_hidden_layers"])
            found["layer_types"] = tuple(SLIDING if (i + 1) % 5 else FULL for i in layers)
        keys.check_layer_types(found)


class Kolibri1TopKRouter(nn.Module):
    def __init__(self, config: Kolibri1Config, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)
        self.e_score_correction_bias = nn.buffer((config.num_experts,), dtype)


class Kolibri1SparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Kolibri1Config, dtype: DType) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.gate = Kolibri1TopKRouter(config, dtype)
        self.shared_experts = GatedMLP(width, config.shared_expert_intermediate_size, act, dtype)


class Kolibri1Attention(Qwen3Attention):
    def biases(self, config: Any) -> tuple[bool, bool]:
        """None."""
        return False, False


class Kolibri1DecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Kolibri1Config, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = Kolibri1Attention(config, dtype, layer_idx)
        self.mlp = Kolibri1SparseMoeBlock(config, dtype)
        self.input_layernorm = nn.RMSNorm(width, dtype)
        self.post_attention_layernorm = nn.RMSNorm(width, dtype)
        self.post_self_attn_layernorm = nn.RMSNorm(width, dtype)
        self.post_mlp_layernorm = nn.RMSNorm(width, dtype)


class Kolibri1Model(LlamaModel):
    layer_class: ClassVar[type[Any]] = Kolibri1DecoderLayer


class Kolibri1ForCausalLM(LlamaForCausalLM):
    model_class = Kolibri1Model
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Kolibri1ForCausalLM(Kolibri1Config.read(config, where), dtype)
