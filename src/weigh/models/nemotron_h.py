"""Nemotron-H, as `transformers/models/nemotron_h/modeling_nemotron_h.py` (5.23) writes it.

Every layer is one thing: Mamba 2 (on its slow path), attention without positions, an MLP, or experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    FULL,
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    causal_lm_loss,
    create_causal_mask,
    period_of,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3TopkRouter
from weigh.models.experts import Experts
from weigh.models.hybrid import LINEAR, MLP, MOE, HybridConfig, create_recurrent_attention_mask
from weigh.models.jamba import JambaAttention
from weigh.models.layout import State
from weigh.models.mamba2 import Mamba2Mixer, Mamba2Sizes
from weigh.records import dataclass

MODEL_TYPES = ("nemotron_h",)
PATTERN = {"M": LINEAR, "E": MOE, "*": FULL, "-": MLP}
"""The letters of `hybrid_override_pattern`."""


@dataclass(frozen=True)
class NemotronHConfig(HybridConfig):
    """The settings of `NemotronHConfig` that shape memory."""

    vocab_size: int = 131072
    num_key_value_heads: int = 8
    head_dim: int = 128
    attention_bias: bool = False
    intermediate_size: int = 21504
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    ssm_state_size: int = 128
    mamba_num_heads: int = 128
    mamba_head_dim: int = 64
    mamba_hidden_act: str = "silu"
    n_groups: int = 8
    conv_kernel: int = 4
    use_conv_bias: bool = True
    chunk_size: int = 128
    use_bias: bool = False
    mamba_proj_bias: bool = False
    n_routed_experts: int = 8
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    num_experts_per_tok: int = 2
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    hybrid_override_pattern: str = DERIVED

    kinds = (FULL, LINEAR, MOE, MLP)
    aliases: ClassVar[Mapping[str, str]] = {
        "layers_block_type": "layer_types",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_chunk_size": "chunk_size",
    }

    @property
    def mixer(self) -> Mamba2Sizes:
        """The sizes of a mixer."""
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            intermediate_size=self.mamba_num_heads * self.mamba_head_dim,
            num_heads=self.mamba_num_heads,
            head_dim=self.mamba_head_dim,
            n_groups=self.n_groups,
            state_size=self.ssm_state_size,
            conv_kernel=self.conv_kernel,
            chunk_size=self.chunk_size,
            use_bias=self.use_bias,
            out_bias=self.use_bias,
            use_conv_bias=self.use_conv_bias,
            hidden_act=self.mamba_hidden_act,
        )

    @property
    def states(self) -> tuple[State, ...]:
        """Mamba 2's."""
        return self.mixer.states

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The types of the layers say how many there are."""
        pattern = found["hybrid_override_pattern"]
        found["hybrid_override_pattern"] = pattern or ""
        if found["layer_types"] is None and pattern:
            where = f"{keys.where}: hybrid_override_pattern"
            for letter in pattern:
                if letter not in PATTERN:
                    raise InputError(f"has the letter {letter!r}", where=where, hint=f"Use {' '.join(PATTERN)}.")
            found["layer_types"] = tuple(PATTERN[letter] for letter in pattern)
        found["layer_types"] = found["layer_types"] or (LINEAR, MOE, FULL, MLP)
        found["num_hidden_layers"] = len(found["layer_types"])
        super().settle(keys, found)
        nn.activation(found["mlp_hidden_act"])
        keys.cannot_run("output_router_logits", "the routers' own loss")
        keys.make(cls, found).mixer.check(keys)


class NemotronHRMSNorm(nn.RMSNorm):
    """Scaled in fp32, with a copy of the weights."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        return (self.weight.to(FLOAT32) * hidden_states).to(input_dtype)


class NemotronHMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: NemotronHConfig, dtype: DType, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, dtype, config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, dtype, config.mlp_bias)
        self.act_fn = nn.Activation(config.mlp_hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]


class NemotronHExperts(Experts):
    """Without a gate."""

    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        nn.Module.__init__(self)
        self.num_experts = config.n_routed_experts
        self.active_share = Fraction(config.num_experts_per_tok, config.n_routed_experts)
        width, inner = config.moe_latent_size or config.hidden_size, config.moe_intermediate_size
        self.up_proj = nn.parameter((self.num_experts, inner, width), dtype)
        self.down_proj = nn.parameter((self.num_experts, width, inner), dtype)
        self.gate_up_proj_bias = self.down_proj_bias = None
        self.act_fn = nn.Activation(config.mlp_hidden_act)

    @property
    def gate_up_proj(self) -> Tensor:  # type: ignore[override]
        """The first projection."""
        return self.up_proj

    def apply_gate(self, gate_up_out: Tensor) -> Tensor:
        """(S, F) -> (S, F)."""
        return self.act_fn(gate_up_out)  # type: ignore[no-any-return]


class NemotronHMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        super().__init__()
        self.experts = NemotronHExperts(config, dtype)
        self.gate = DeepseekV3TopkRouter(config, dtype)
        self.shared_experts = NemotronHMLP(config, dtype, config.moe_shared_expert_intermediate_size)
        self.is_latent = config.moe_latent_size is not None
        if config.moe_latent_size is not None:
            self.fc1_latent_proj = nn.Linear(config.hidden_size, config.moe_latent_size, dtype, config.mlp_bias)
            self.fc2_latent_proj = nn.Linear(config.moe_latent_size, config.hidden_size, dtype, config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residuals = hidden_states
        orig_shape = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        if self.is_latent:
            hidden_states = self.fc1_latent_proj(hidden_states)
        hidden_states = self.experts(hidden_states, topk_indices, topk_weights)
        if self.is_latent:
            hidden_states = self.fc2_latent_proj(hidden_states)
        hidden_states = hidden_states.view(*orig_shape)
        hidden_states = hidden_states + self.shared_experts(residuals)
        return hidden_states


class NemotronHBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: NemotronHConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.norm = NemotronHRMSNorm(config.hidden_size, dtype)
        self.block_type = config.layer_types[layer_idx]
        self.mixer = self.make_mixer(config, dtype, layer_idx)

    def make_mixer(self, config: NemotronHConfig, dtype: DType, layer_idx: int) -> nn.Module:
        """What the layer does."""
        if self.block_type == LINEAR:
            return Mamba2Mixer(config, dtype)
        if self.block_type == FULL:
            return JambaAttention(config, dtype, layer_idx)
        if self.block_type == MOE:
            return NemotronHMoE(config, dtype)
        return NemotronHMLP(config, dtype, config.intermediate_size)

    def forward(self, hidden_states: Tensor, cache: Cache | None, mask: Tensor | None, positions: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.norm(hidden_states.to(self.norm.weight.dtype))
        if self.block_type == LINEAR:
            hidden_states = self.mixer(hidden_states, cache, mask)
        elif self.block_type == FULL:
            hidden_states, _ = self.mixer(hidden_states, None, mask, cache)
        else:
            hidden_states = self.mixer(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class NemotronHModel(nn.Module):
    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.Stack(
            "model.layers",
            config.num_hidden_layers,
            lambda layer_idx: NemotronHBlock(config, dtype, layer_idx),
            period_of(config.layer_types),
        )
        self.norm_f = NemotronHRMSNorm(config.hidden_size, dtype)

    def forward(
        self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        inputs_embeds = self.embeddings(input_ids)
        hidden_states = inputs_embeds
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        create_recurrent_attention_mask(inputs_embeds, attention_mask)
        for mixer_block in self.layers:
            mask = causal_mask if mixer_block.block_type == FULL else None  # type: ignore[attr-defined]
            hidden_states = mixer_block(hidden_states, cache, mask, positions)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.norm_f(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class NemotronHForCausalLM(CausalModel):
    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.layer_types.count(FULL)
        self.model = NemotronHModel(config, dtype)
        self.lm_head = nn.Head(None, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return tuple(map(self.config.layer_cache, range(self.config.num_hidden_layers)))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.model(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states).float()
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return NemotronHForCausalLM(NemotronHConfig.read(config, where), dtype)
