"""Qwen3-Next, as `transformers/models/qwen3_next/modeling_qwen3_next.py` (5.23) writes it.

Gated delta nets (on their slow path) in three layers of four, gated attention in the others, experts in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.delta_net import DeltaNetConfig, GatedNorm
from weigh.models.experts import GatedMLP
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.hybrid import LINEAR, CountedForCausalLM, HybridModel
from weigh.models.llama import LlamaAttention
from weigh.models.qwen2_moe import Qwen2MoeSparseMoeBlock
from weigh.models.recurrent import Conv1d

MODEL_TYPES = ("qwen3_next",)


@dataclass(frozen=True)
class QwenHybridConfig(DeltaNetConfig):
    """What the configs of Qwen's hybrids share."""

    num_key_value_heads: int = 2
    head_dim: int = 256
    rotary_width: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A quarter of each head is rotated."""
        super().settle(keys, found)
        found["rotary_width"] = keys.rotary_width(found["head_dim"], default=0.25)
        keys.cannot_run("output_router_logits", "the routers' own loss")

    def is_sparse(self, layer_idx: int) -> bool:
        """The layer has experts."""
        return True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Attention, and experts."""
        return [(name, self.is_sparse(i)) for i, name in enumerate(self.layer_types)]


@dataclass(frozen=True)
class Qwen3NextConfig(QwenHybridConfig):
    """The settings of `Qwen3NextConfig` that shape memory."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 10
    num_experts: int = 512
    norm_topk_prob: bool = True
    mlp_only_layers: tuple[int, ...] = ()

    def is_sparse(self, layer_idx: int) -> bool:
        return layer_idx not in self.mlp_only_layers and (layer_idx + 1) % self.decoder_sparse_step == 0

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        found["mlp_only_layers"] = found["mlp_only_layers"] or ()


class Qwen3NextAttention(LlamaAttention):
    """Queries come with a gate for what they find."""

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, 2 * self.num_heads * self.head_dim, dtype, config.attention_bias)
        self.q_norm = GemmaRMSNorm(self.head_dim, dtype)
        self.k_norm = GemmaRMSNorm(self.head_dim, dtype)


class Qwen3NextGatedDeltaNet(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.conv1d = Conv1d(config.conv_dim, config.linear_conv_kernel_dim, dtype, bias=False)
        self.add_projections(config, dtype)
        self.dt_bias = nn.parameter((config.linear_num_value_heads,), dtype)
        self.A_log = nn.parameter((config.linear_num_value_heads,), dtype)
        self.norm = GatedNorm(config.linear_value_head_dim, dtype)
        self.out_proj = nn.Linear(config.value_dim, config.hidden_size, dtype)

    def add_projections(self, config: Any, dtype: DType) -> None:
        """All in two."""
        self.in_proj_qkvz = nn.Linear(config.hidden_size, 2 * config.key_dim + 2 * config.value_dim, dtype)
        self.in_proj_ba = nn.Linear(config.hidden_size, 2 * config.linear_num_value_heads, dtype)


class Qwen3NextDecoderLayer(nn.Module):
    role = nn.BLOCK
    delta_net_class: ClassVar[type[Qwen3NextGatedDeltaNet]] = Qwen3NextGatedDeltaNet

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.is_linear = config.layer_types[layer_idx] == LINEAR
        if self.is_linear:
            self.linear_attn = self.delta_net_class(config, dtype)
        else:
            self.self_attn = Qwen3NextAttention(config, dtype, layer_idx)
        if config.is_sparse(layer_idx):
            self.mlp: nn.Module = Qwen2MoeSparseMoeBlock(config, dtype)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, dtype)


class Qwen3NextModel(HybridModel):
    layer_class: ClassVar[type[Any]] = Qwen3NextDecoderLayer
    norm_class = GemmaRMSNorm

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of each head."""
        return RotaryEmbedding(config.rotary_width)


class Qwen3NextForCausalLM(CountedForCausalLM):
    model_class: ClassVar[type[Any]] = Qwen3NextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen3NextForCausalLM(Qwen3NextConfig.read(config, where), dtype)
