"""Jamba, as `transformers/models/jamba/modeling_jamba.py` (5.23) writes it, on its slow path.

Mamba in most layers, attention without positions in every eighth, experts in every second.
"""

# ruff: noqa: N803  the equations' names

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, Cache, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.hybrid import LINEAR, HybridConfig, HybridForCausalLM, HybridModel
from weigh.models.layout import State
from weigh.models.llama import DecoderConfig, LlamaAttention
from weigh.models.mamba import MambaMixer, mamba_states
from weigh.records import dataclass

MODEL_TYPES = ("jamba",)


@dataclass(frozen=True)
class JambaConfig(HybridConfig):
    """The settings of `JambaConfig` that shape memory."""

    vocab_size: int = 65536
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    num_experts_per_tok: int = 2
    num_experts: int = 16
    expert_layer_period: int = 2
    expert_layer_offset: Count = 1
    attn_layer_period: int = 8
    attn_layer_offset: Count = 4
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int = DERIVED
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @property
    def states(self) -> tuple[State, ...]:
        """Mamba's."""
        return mamba_states(self.intermediate, self.mamba_d_conv, self.mamba_d_state)

    @property
    def intermediate(self) -> int:
        """The width of a mixer."""
        return self.mamba_expand * self.hidden_size

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Attention, and experts."""
        return [(name, self.is_sparse(i)) for i, name in enumerate(self.layer_types)]

    def is_sparse(self, layer_idx: int) -> bool:
        """The layer has experts."""
        return self.num_experts > 1 and layer_idx % self.expert_layer_period == self.expert_layer_offset

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The layers' types follow from the periods alone."""
        found["layer_types"] = None
        super().settle(keys, found)
        found["mamba_dt_rank"] = found["mamba_dt_rank"] or math.ceil(found["hidden_size"] / 16)
        keys.cannot_run("use_mambapy", "the scan of the package mambapy")
        keys.cannot_run("output_router_logits", "the routers' own loss")
        for kind in ("attn", "expert"):
            if found[f"{kind}_layer_offset"] >= found[f"{kind}_layer_period"]:
                raise InputError(
                    "is not below the period",
                    where=f"{keys.where}: {kind}_layer_offset",
                    hint=f"Give less than {kind}_layer_period.",
                )

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return FULL if layer_idx % found["attn_layer_period"] == found["attn_layer_offset"] else LINEAR


class JambaAttention(LlamaAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """None, whatever the config says."""
        return False, False

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor]:
        """No positions."""
        return query, key


@dataclass(frozen=True)
class _Sizes:
    """A mixer's sizes under Mamba's names."""

    hidden_size: int
    intermediate_size: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    use_bias: bool
    use_conv_bias: bool
    hidden_act: str


class JambaMambaMixer(MambaMixer):
    tries_inner = False

    def __init__(self, config: JambaConfig, dtype: DType) -> None:
        sizes = _Sizes(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate,
            state_size=config.mamba_d_state,
            conv_kernel=config.mamba_d_conv,
            time_step_rank=config.mamba_dt_rank,
            use_bias=config.mamba_proj_bias,
            use_conv_bias=config.mamba_conv_bias,
            hidden_act=config.hidden_act,
        )
        super().__init__(sizes, dtype)
        self.dt_layernorm = nn.RMSNorm(config.mamba_dt_rank, dtype)
        self.b_layernorm = nn.RMSNorm(config.mamba_d_state, dtype)
        self.c_layernorm = nn.RMSNorm(config.mamba_d_state, dtype)

    def normalise(self, time_step: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time_step = self.dt_layernorm(time_step)
        B = self.b_layernorm(B)
        C = self.c_layernorm(C)
        return time_step, B, C


class JambaTopKRouter(nn.Module):
    def __init__(self, config: JambaConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight)
        routing_weights = ops.softmax(router_logits, FLOAT32)
        top_k_weights, top_k_index = ops.topk(routing_weights, self.top_k)
        return router_logits, top_k_weights.to(hidden_states.dtype), top_k_index


class JambaSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: JambaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.router = JambaTopKRouter(config, dtype)
        experts, active = config.num_experts, config.num_experts_per_tok
        self.experts = Experts(experts, active, width, inner, config.hidden_act, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        _, top_k_weights, top_k_index = self.router(hidden_states)
        hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        hidden_states = hidden_states.reshape(batch_size, sequence_length, hidden_dim)
        return hidden_states


class JambaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: JambaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.is_linear = config.layer_types[layer_idx] == LINEAR
        if self.is_linear:
            self.mamba = JambaMambaMixer(config, dtype)
        else:
            self.self_attn = JambaAttention(config, dtype, layer_idx)
        if config.is_sparse(layer_idx):
            self.feed_forward: nn.Module = JambaSparseMoeBlock(config, dtype)
        else:
            self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        if self.is_linear:
            hidden_states = self.mamba(hidden_states, cache, mask)
        else:
            hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_ff_layernorm(hidden_states)
        hidden_states = self.feed_forward(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class JambaModel(HybridModel):
    layer_class = JambaDecoderLayer
    norm_name = "final_layernorm"

    def rotary(self, config: DecoderConfig) -> Any:
        """None."""

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, Any]:
        """None."""
        return {FULL: None, LINEAR: None}


class JambaForCausalLM(HybridForCausalLM):
    model_class = JambaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return JambaForCausalLM(JambaConfig.read(config, where), dtype)
