"""Bamba, as `transformers/models/bamba/modeling_bamba.py` (5.23) writes it, on its slow path.

Mamba 2 in most layers, attention that turns half of each head in some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, Cache, CausalModel, RotaryEmbedding
from weigh.models.config import DERIVED, Keys
from weigh.models.gpt_neox import apply_rotary_pos_emb
from weigh.models.hybrid import LINEAR, HybridConfig, HybridForCausalLM, HybridModel
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention, LlamaMLP
from weigh.models.mamba2 import Mamba2Mixer, Mamba2Sizes
from weigh.records import dataclass

MODEL_TYPES = ("bamba",)


@dataclass(frozen=True)
class Mamba2HybridConfig(HybridConfig):
    """What the configs of hybrids with Mamba 2 share."""

    mamba_n_heads: int = 128
    mamba_d_head: int = DERIVED
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_chunk_size: int = 256
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    attention_bias: bool = False

    @property
    def mamba_width(self) -> int:
        """The width of a mixer."""
        return self.mamba_expand * self.hidden_size

    @property
    def mixer(self) -> Mamba2Sizes:
        """The sizes of a mixer."""
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            intermediate_size=self.mamba_width,
            num_heads=self.mamba_n_heads,
            head_dim=self.mamba_d_head or self.mamba_width // self.mamba_n_heads,
            n_groups=self.mamba_n_groups,
            state_size=self.mamba_d_state,
            conv_kernel=self.mamba_d_conv,
            chunk_size=self.mamba_chunk_size,
            use_bias=self.mamba_proj_bias,
            out_bias=self.mamba_proj_bias,
            use_conv_bias=self.mamba_conv_bias,
            hidden_act=self.hidden_act,
        )

    @property
    def states(self) -> tuple[State, ...]:
        """Mamba 2's."""
        return self.mixer.states

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Zero stands for a width that follows from the others."""
        super().settle(keys, found)
        found["mamba_d_head"] = found["mamba_d_head"] or 0
        keys.make(cls, found).mixer.check(keys)


@dataclass(frozen=True)
class BambaConfig(Mamba2HybridConfig):
    """The settings of `BambaConfig` that shape memory."""

    vocab_size: int = 128000
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    mlp_bias: bool = False
    attn_layer_indices: tuple[int, ...] = ()
    rotary_width: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The layers with attention are given by number."""
        found["layer_types"] = None
        found["attn_layer_indices"] = found["attn_layer_indices"] or ()
        head_dim = found["head_dim"] or found["hidden_size"] // found["num_attention_heads"]
        found["rotary_width"] = keys.rotary_width(head_dim, "", default=0.5)
        super().settle(keys, found)
        keys.cannot_run("z_loss_coefficient", "a loss of the logits' size", unless=0.0)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        return FULL if layer_idx in found["attn_layer_indices"] else LINEAR


class BambaAttention(LlamaAttention):
    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Half of each head."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)


class BambaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: BambaConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.feed_forward = LlamaMLP(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.is_linear = config.layer_types[layer_idx] == LINEAR
        if self.is_linear:
            self.mamba = Mamba2Mixer(config, dtype)
        else:
            self.self_attn = BambaAttention(config, dtype, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        self_attn_weights = None
        if self.is_linear:
            hidden_states = self.mamba(hidden_states, cache, mask)
        else:
            hidden_states, self_attn_weights = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_ff_layernorm(hidden_states)
        hidden_states = self.feed_forward(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states, self_attn_weights


class BambaModel(HybridModel):
    layer_class = BambaDecoderLayer
    norm_name = "final_layernorm"

    def rotary(self, config: Any) -> RotaryEmbedding:
        """Of half a head."""
        return RotaryEmbedding(config.rotary_width)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        """Llama's, but that the variable of the last attention's scores keeps them alive."""
        inputs_embeds = self.embed(input_ids)
        hidden_states = inputs_embeds
        if positions is None:
            positions = ops.arange(input_ids.shape[1]).unsqueeze(0)
        masks = self.causal_mask_mapping(inputs_embeds, cache, positions, attention_mask)
        position_embeddings = self.rotary_emb(hidden_states, positions)
        for layer_idx, decoder_layer in zip(self.layers.indices, self.layers, strict=True):
            mask = masks[self.config.layer_types[layer_idx]]
            hidden_states, attn_weights = decoder_layer(hidden_states, position_embeddings, mask, positions, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = getattr(self, self.norm_name)(hidden_states)
        del attn_weights
        return hidden_states  # type: ignore[no-any-return]


class BambaForCausalLM(HybridForCausalLM):
    model_class = BambaModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BambaForCausalLM(BambaConfig.read(config, where), dtype)
