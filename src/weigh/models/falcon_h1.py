"""Falcon-H1, as `transformers/models/falcon_h1/modeling_falcon_h1.py` (5.23) writes it, on its slow path.

Attention and Mamba 2 side by side in every layer, and multipliers everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.bamba import Mamba2HybridConfig
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.hybrid import HYBRID, HybridForCausalLM, HybridModel
from weigh.models.llama import LlamaAttention, LlamaMLP
from weigh.models.mamba2 import Mamba2Mixer, Mamba2Sizes
from weigh.records import dataclass, replace

MODEL_TYPES = ("falcon_h1",)


@dataclass(frozen=True)
class FalconH1Config(Mamba2HybridConfig):
    """The settings of `FalconH1Config` that shape memory; the multipliers do not."""

    vocab_size: int = 128000
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    mamba_d_ssm: int | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    projectors_bias: bool = False
    mlp_bias: bool = False

    kinds = (HYBRID,)

    @property
    def mamba_width(self) -> int:
        """The width of a mixer."""
        return self.mamba_d_ssm or super().mamba_width

    @property
    def mixer(self) -> Mamba2Sizes:
        """The sizes of a mixer."""
        return replace(super().mixer, out_bias=self.projectors_bias)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """All layers are alike."""
        found["layer_types"] = None
        super().settle(keys, found)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return HYBRID


class FalconH1Attention(LlamaAttention):
    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The keys are scaled."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(*hidden_shape).transpose(1, 2) * 1.0
        value_states = self.v_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        return query_states, key_states, value_states


class FalconH1RMSNormGated(nn.Module):
    role = nn.NORM

    def __init__(self, config: FalconH1Config, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.mixer.intermediate_size,), dtype)
        self.groups, self.norm_before_gate = config.mamba_n_groups, config.mamba_norm_before_gate

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        if not self.norm_before_gate:
            hidden_states = hidden_states * ops.silu(gate.to(FLOAT32))
        batch_size, seq_len, dim = hidden_states.shape
        hidden_states = hidden_states.to(FLOAT32)
        hidden_states = hidden_states.view(batch_size, seq_len, self.groups, dim // self.groups)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        hidden_states = self.weight.view(self.groups, dim // self.groups) * hidden_states
        hidden_states = hidden_states.view(batch_size, seq_len, dim)
        if self.norm_before_gate:
            hidden_states = hidden_states * ops.silu(gate.to(FLOAT32))
        return hidden_states.to(input_dtype)


class FalconH1Mixer(Mamba2Mixer):
    def __init__(self, config: FalconH1Config, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.mup_vector = nn.buffer((1, 1, self.intermediate_size + self.conv_dim + self.num_heads), dtype)

    def add_norm(self, config: Any, dtype: DType) -> None:
        """Only if the config wants it."""
        self.gates_state_update = not config.mamba_rms_norm
        if config.mamba_rms_norm:
            self.norm = FalconH1RMSNormGated(config, dtype)

    def project(self, hidden_states: Tensor) -> Tensor:
        """Scaled before, and part by part after."""
        hidden_states = hidden_states * 1.0
        projected_states = self.in_proj(hidden_states)
        return projected_states * self.mup_vector  # type: ignore[no-any-return]

    def gate_output(self, scan_output: Tensor, gate: Tensor) -> Tensor:
        """With or without a norm."""
        if self.gates_state_update:
            return scan_output * ops.silu(gate)
        return super().gate_output(scan_output, gate)


class FalconH1MLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        y = self.up_proj(x) * self.act_fn(self.gate_proj(x) * 1.0)
        y = self.down_proj(y) * 1.0
        return y  # type: ignore[no-any-return]


class FalconH1DecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: FalconH1Config, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.feed_forward = FalconH1MLP(config, dtype)
        self.mamba = FalconH1Mixer(config, dtype)
        self.self_attn = FalconH1Attention(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        mamba_hidden_states = self.mamba(hidden_states, cache, None)
        mamba_hidden_states = mamba_hidden_states * 1.0
        attention_hidden_states, _ = self.self_attn(hidden_states * 1.0, position_embeddings, mask, cache)
        attention_hidden_states = attention_hidden_states * 1.0
        hidden_states = mamba_hidden_states + attention_hidden_states
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_ff_layernorm(hidden_states)
        hidden_states = self.feed_forward(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class FalconH1Model(HybridModel):
    layer_class = FalconH1DecoderLayer
    norm_name = "final_layernorm"

    def embed(self, input_ids: Tensor) -> Tensor:
        """Scaled."""
        return self.embed_tokens(input_ids) * 1.0  # type: ignore[no-any-return]


class FalconH1ForCausalLM(HybridForCausalLM):
    model_class = FalconH1Model

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Scaled."""
        return logits * 1.0


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return FalconH1ForCausalLM(FalconH1Config.read(config, where), dtype)
