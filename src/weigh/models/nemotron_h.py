"""Nemotron-H, as `transformers/models/nemotron_h/modeling_nemotron_h.py` (5.23) writes it.

Every layer is one thing: Mamba 2 (on its slow path), attention without positions, an MLP, or experts. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import FULL, CausalModel, LayerCache, period_of
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3TopkRouter
from weigh.models.experts import Experts
from weigh.models.hybrid import LINEAR, MLP, MOE, HybridConfig
from weigh.models.jamba import JambaAttention
from weigh.models.layout import State
from weigh.models.mamba2 import Mamba2Mixer, Mamba2Sizes
from weigh.models.olmo2 import Olmo2RMSNorm

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


class NemotronHMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: NemotronHConfig, dtype: DType, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, dtype, config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, dtype, config.mlp_bias)
        self.act_fn = nn.Activation(config.mlp_hidden_act)


class NemotronHExperts(Experts):
    """Without a gate."""

    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        nn.Module.__init__(self)
        self.num_experts = config.n_routed_experts
        self.active_share = Fraction(config.num_experts_per_tok, config.n_routed_experts)
        width, inner = config.moe_latent_size or config.hidden_size, config.moe_intermediate_size
        self.up_proj = nn.parameter((self.num_experts, inner, width), dtype)
        self.down_proj = nn.parameter((self.num_experts, width, inner), dtype)


class NemotronHMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        super().__init__()
        self.experts = NemotronHExperts(config, dtype)
        self.gate = DeepseekV3TopkRouter(config, dtype)
        self.shared_experts = NemotronHMLP(config, dtype, config.moe_shared_expert_intermediate_size)
        if config.moe_latent_size is not None:
            self.fc1_latent_proj = nn.Linear(config.hidden_size, config.moe_latent_size, dtype, config.mlp_bias)
            self.fc2_latent_proj = nn.Linear(config.moe_latent_size, config.hidden_size, dtype, config.mlp_bias)


class NemotronHBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: NemotronHConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.norm = Olmo2RMSNorm(config.hidden_size, dtype)
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
        self.norm_f = Olmo2RMSNorm(config.hidden_size, dtype)


class NemotronHForCausalLM(CausalModel):
    def __init__(self, config: NemotronHConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.layer_types.count(FULL)
        self.model = NemotronHModel(config, dtype)
        self.lm_head = nn.Head(None, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        return tuple(map(self.config.layer_cache, range(self.config.num_hidden_layers)))


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return NemotronHForCausalLM(NemotronHConfig.read(config, where), dtype)
