"""DeepSeek-V2, as `transformers/models/deepseek_v2/modeling_deepseek_v2.py` (5.23) writes it.

DeepSeek-V3's layers with positions as complex numbers, and experts chosen by a softmax. Groups are asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Count, Keys, cannot_run
from weigh.models.deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3DecoderLayer,
    DeepseekV3ForCausalLM,
    DeepseekV3Model,
    DeepseekV3MoE,
    LatentConfig,
)
from weigh.models.sparse import first_dense
from weigh.records import dataclass

MODEL_TYPES = ("deepseek_v2",)
GREEDY, GROUPS = "greedy", "group_limited_greedy"


@dataclass(frozen=True)
class DeepseekV2Config(LatentConfig):
    """The settings of `DeepseekV2Config` that shape memory."""

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = DERIVED
    n_shared_experts: int = 2
    n_routed_experts: int = 64
    n_group: int | None = None
    topk_group: int | None = None
    topk_method: str = GREEDY
    num_experts_per_tok: int = DERIVED
    first_k_dense_replace: Count = 0
    mlp_bias: bool = False

    heads_divide_width = True
    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "n_routed_experts"}

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.first_k_dense_replace)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """How many experts a token chooses has no default; groups have a size where they are asked for."""
        super().settle(keys, found)
        if found["num_experts_per_tok"] is None:
            found["num_experts_per_tok"] = found["n_routed_experts"]
            cannot_run("no number of experts a token", f"{keys.where}: num_experts_per_tok")
        if found["topk_method"] not in (GREEDY, GROUPS):
            cannot_run(f"choosing experts by {found['topk_method']!r}", f"{keys.where}: topk_method")
        if found["topk_method"] == GROUPS and not (found["n_group"] and found["topk_group"]):
            hint = "Give n_group and topk_group."
            raise InputError(f"is {GROUPS!r}, without groups", where=f"{keys.where}: topk_method", hint=hint)


class DeepseekV2TopkRouter(nn.Module):
    def __init__(self, config: DeepseekV2Config, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.n_routed_experts
        self.hidden_dim = config.hidden_size
        self.weight = nn.parameter((self.num_experts, self.hidden_dim), dtype)
        self.num_group, self.topk_group = config.n_group, config.topk_group
        self.grouped = config.topk_method == GROUPS

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.view(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states.to(FLOAT32), self.weight.to(FLOAT32))
        scores = ops.softmax(router_logits, FLOAT32)
        if self.grouped:
            assert self.num_group
            assert self.topk_group
            in_group = self.num_experts // self.num_group
            group_scores = ops.max_last(scores.view(-1, self.num_group, in_group))[0].squeeze(-1)
            group_idx = ops.topk(group_scores, self.topk_group)[1]
            group_mask = ops.zeros_as(group_scores)
            ops.scatter_(group_mask, group_idx)
            score_mask = group_mask.unsqueeze(-1).expand(scores.shape[0], self.num_group, in_group)
            score_mask = score_mask.reshape(-1, self.num_experts)
            scores = ops.masked_fill(scores, ops.bitwise_not(score_mask.to(BOOL)))
        topk_weights, topk_indices = ops.topk(scores, self.top_k)
        topk_weights = topk_weights * 1.0
        return router_logits, topk_weights, topk_indices


class DeepseekV2MoE(DeepseekV3MoE):
    router_class = DeepseekV2TopkRouter


class ComplexRotaryEmbedding(RotaryEmbedding):
    """Every position and frequency as a complex number of length one, (1, length, width / 2)."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        with no_grad():
            freqs = positions.unsqueeze(-1).float() * self.inv_freq
            freqs_cis = ops.polar(ops.full_like(freqs), freqs)
            freqs_cis = freqs_cis * 1.0
            return freqs_cis


def as_pairs(x: Tensor) -> Tensor:
    """(..., width) to (..., width / 2) complex numbers, of neighbours in fp32."""
    return ops.view_as_complex(x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))


def from_pairs(x: Tensor) -> Tensor:
    """(..., width / 2) complex numbers to (..., width) in fp32."""
    x = ops.view_as_real(x)
    return x.reshape(*x.shape[:-2], x.shape[-2] * 2)


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (batch, heads, length, width) turned as complex numbers."""
    xq_ = as_pairs(xq)
    xk_ = as_pairs(xk)
    freqs_cis = freqs_cis.unsqueeze(1)
    xq_out = from_pairs(ops.mul_complex(xq_, freqs_cis)).to(xq.dtype)
    xk_out = from_pairs(ops.mul_complex(xk_, freqs_cis)).to(xk.dtype)
    return xq_out, xk_out


class DeepseekV2Attention(DeepseekV3Attention):
    def rotate(self, q_rot: Tensor, k_rot: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor]:
        """As complex numbers."""
        return apply_rotary_emb(q_rot, k_rot, position_embeddings)


class DeepseekV2DecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = DeepseekV2Attention
    moe_class: ClassVar[type[Any]] = DeepseekV2MoE


class DeepseekV2Model(DeepseekV3Model):
    layer_class = DeepseekV2DecoderLayer

    def rotary(self, config: Any) -> nn.Module:
        """Complex numbers."""
        return ComplexRotaryEmbedding(config.head_dim)


class DeepseekV2ForCausalLM(DeepseekV3ForCausalLM):
    model_class = DeepseekV2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return DeepseekV2ForCausalLM(DeepseekV2Config.read(config, where), dtype)
