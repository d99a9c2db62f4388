"""The text models of Qwen3.5, as `transformers/models/qwen3_5` and `qwen3_5_moe` (5.23) write them.

Qwen3-Next with the projections of its delta nets apart, dense or with experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.qwen2_vl import Interleaved, ThreePositions
from weigh.models.qwen3_next import (
    Projected,
    Qwen3NextDecoderLayer,
    Qwen3NextForCausalLM,
    Qwen3NextGatedDeltaNet,
    Qwen3NextModel,
    QwenHybridConfig,
)
from weigh.records import dataclass

MODEL_TYPES = ("qwen3_5_text", "qwen3_5_moe_text")


@dataclass(frozen=True)
class Qwen3_5TextConfig(QwenHybridConfig):  # noqa: N801  upstream's name
    """The settings of `Qwen3_5TextConfig` that shape memory."""

    vocab_size: int = 248320
    intermediate_size: int = 12288
    num_attention_heads: int = 16
    num_key_value_heads: int = 4

    def is_sparse(self, layer_idx: int) -> bool:
        return False


@dataclass(frozen=True)
class Qwen3_5MoeTextConfig(QwenHybridConfig):  # noqa: N801  upstream's name
    """The settings of `Qwen3_5MoeTextConfig` that shape memory."""

    vocab_size: int = 248320
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 16
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 8
    num_experts: int = 256
    norm_topk_prob: bool = True


class Qwen3_5GatedDeltaNet(Qwen3NextGatedDeltaNet):  # noqa: N801  upstream's name
    def add_projections(self, config: Any, dtype: DType) -> None:
        """Each its own, after the other modules."""

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        width, heads = config.hidden_size, config.linear_num_value_heads
        self.in_proj_qkv = nn.Linear(width, config.conv_dim, dtype)
        self.in_proj_z = nn.Linear(width, config.value_dim, dtype)
        self.in_proj_b = nn.Linear(width, heads, dtype)
        self.in_proj_a = nn.Linear(width, heads, dtype)

    def project(self, hidden_states: Tensor) -> Projected:
        mixed_qkv = self.in_proj_qkv(hidden_states)
        mixed_qkv = mixed_qkv.transpose(1, 2)
        z = self.in_proj_z(hidden_states)
        z = z.reshape(*hidden_states.shape[:2], -1, self.head_v_dim)
        b = self.in_proj_b(hidden_states)
        a = self.in_proj_a(hidden_states)
        return mixed_qkv, z, b, a, [], []


class Qwen3_5DecoderLayer(Qwen3NextDecoderLayer):  # noqa: N801  upstream's name
    delta_net_class = Qwen3_5GatedDeltaNet


class Qwen3_5TextModel(ThreePositions, Qwen3NextModel):  # noqa: N801  upstream's name
    layer_class = Qwen3_5DecoderLayer
    kinds = 4

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of each head."""
        return Interleaved(config.rotary_width)


class Qwen3_5ForCausalLM(Qwen3NextForCausalLM):  # noqa: N801  upstream's name
    model_class = Qwen3_5TextModel


class Qwen3_5MoeForCausalLM(Qwen3_5ForCausalLM):  # noqa: N801  upstream's name
    """The same classes by other names: the config says which layers have experts."""


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    if config["model_type"] == "qwen3_5_moe_text":
        return Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig.read(config, where), dtype)
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig.read(config, where), dtype)
