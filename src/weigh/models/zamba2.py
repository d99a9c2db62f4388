"""Zamba 2, as `transformers/models/zamba2/modeling_zamba2.py` (5.23) writes it.

Mamba 2 everywhere; some layers first ask a transformer that several of them share, each with an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    Cache,
    CausalModel,
    ModuleList,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    attention_interface,
    create_causal_mask,
    position_ids,
)
from weigh.models.config import DERIVED, Keys
from weigh.models.hybrid import (
    HYBRID,
    LINEAR,
    HybridConfig,
    HybridForCausalLM,
    HybridModel,
    Sequential,
    create_recurrent_attention_mask,
    tied_to,
)
from weigh.models.layout import State
from weigh.models.llama import LlamaAttention
from weigh.models.mamba2 import Mamba2Mixer, Mamba2Sizes
from weigh.records import dataclass

MODEL_TYPES = ("zamba2",)


@dataclass(frozen=True)
class SharedBlockConfig(HybridConfig):
    """What the configs of the Zambas share."""

    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True

    kinds = (LINEAR, HYBRID)

    @property
    def attention_hidden_size(self) -> int:
        """What the shared transformer reads: its layer's input beside the embeddings."""
        return 2 * self.hidden_size

    @property
    def shares(self) -> bool:
        """Upstream shares the transformers as it ties the embeddings, or does neither."""
        return self.tie_word_embeddings

    @property
    def layer_pattern(self) -> Sequence[object]:
        """No layer is like another, for those with attention share it."""
        return range(self.num_hidden_layers)


@dataclass(frozen=True)
class Zamba2Config(SharedBlockConfig):
    """The settings of `Zamba2Config` that shape memory."""

    hidden_size: int = 2560
    num_hidden_layers: int = 54
    intermediate_size: int = DERIVED
    mamba_d_state: int = 64
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_ngroups: int = 1
    n_mamba_heads: int = 8
    chunk_size: int = 256
    add_bias_linear: bool = False
    num_mem_blocks: int = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: int = 128
    use_mem_rope: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"layers_block_type": "layer_types", "attention_head_dim": "head_dim"}

    @property
    def hybrid_layers(self) -> tuple[int, ...]:
        """The layers that ask a shared transformer."""
        return tuple(i for i, name in enumerate(self.layer_types) if name == HYBRID)

    @property
    def mixer(self) -> Mamba2Sizes:
        """The sizes of a mixer."""
        inner = self.mamba_expand * self.hidden_size
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            intermediate_size=inner,
            num_heads=self.n_mamba_heads,
            head_dim=inner // self.n_mamba_heads,
            n_groups=self.mamba_ngroups,
            state_size=self.mamba_d_state,
            conv_kernel=self.mamba_d_conv,
            chunk_size=self.chunk_size,
            use_bias=self.add_bias_linear,
            out_bias=self.add_bias_linear,
            use_conv_bias=True,
            hidden_act="silu",
        )

    @property
    def states(self) -> tuple[State, ...]:
        """Mamba 2's."""
        return self.mixer.states

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The heads are as wide as what they read."""
        found["intermediate_size"] = found["intermediate_size"] or 4 * found["hidden_size"]
        found["head_dim"] = 2 * found["hidden_size"] // found["num_attention_heads"]
        super().settle(keys, found)
        keys.make(cls, found).mixer.check(keys)

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        if found["num_hidden_layers"] != 54:
            raise InputError("is missing", where=f"{keys.where}: layers_block_type", hint="Give one for each layer.")
        return HYBRID if layer_idx in (6, 12, 18, 24, 30, 36, 42, 47, 51) else LINEAR


class Zamba2Attention(LlamaAttention):
    def __init__(self, config: Any, dtype: DType, block_id: int) -> None:
        nn.Module.__init__(self)
        wide, heads, kv_heads = config.attention_hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(wide, heads * config.head_dim, dtype)
        self.k_proj = nn.Linear(wide, kv_heads * config.head_dim, dtype)
        self.v_proj = nn.Linear(wide, kv_heads * config.head_dim, dtype)
        self.o_proj = nn.Linear(heads * config.head_dim, config.hidden_size, dtype)
        if config.use_shared_attention_adapter:
            for name in ("q", "k", "v"):
                setattr(self, f"linear_{name}_adapter_list", adapters(config, wide, wide, dtype, block_id))
        self.head_dim, self.num_key_value_groups = config.head_dim, heads // kv_heads
        self.attention_dropout = config.attention_dropout
        self.adapted, self.turned = config.use_shared_attention_adapter, config.use_mem_rope

    def project_adapted(self, hidden_states: Tensor, number: int) -> list[Tensor]:
        """Queries, keys and values, to which the adapters of the layer add."""
        states = [self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)]
        if self.adapted:
            for place, name in enumerate("qkv"):
                adapter = getattr(self, f"linear_{name}_adapter_list")[number]
                states[place] = states[place] + adapter(hidden_states)
        return states

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        number: int,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states, key_states, value_states = self.project_adapted(hidden_states, number)
        query_states = query_states.view(*hidden_shape).transpose(1, 2)
        key_states = key_states.view(*hidden_shape).transpose(1, 2)
        value_states = value_states.view(*hidden_shape).transpose(1, 2)
        if position_embeddings is not None:
            cos, sin = position_embeddings
            query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        attention = attention_interface(self.eager)
        dropout = self.attention_dropout if self.training else 0.0
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Zamba2MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: Zamba2Config, dtype: DType, block_id: int) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.add_bias_linear
        self.gate_up_proj = nn.Linear(width, 2 * inner, dtype, bias)
        self.down_proj = nn.Linear(inner, width, dtype, bias)
        self.act_fn = nn.Activation(config.hidden_act)
        self.gate_up_proj_adapter_list = adapters(config, width, 2 * inner, dtype, block_id)

    def forward(self, hidden_state: Tensor, number: int) -> Tensor:
        gate_up_state = self.gate_up_proj(hidden_state)
        gate_up_state = gate_up_state + self.gate_up_proj_adapter_list[number](hidden_state)
        gate_up_states = gate_up_state.split([gate_up_state.shape[-1] // 2] * 2, -1)
        del gate_up_state
        hidden_state = self.act_fn(gate_up_states[0]) * gate_up_states[1]
        output = self.down_proj(hidden_state)
        return output  # type: ignore[no-any-return]


def adapters(config: Zamba2Config, width_in: int, width_out: int, dtype: DType, block_id: int) -> ModuleList:
    """One for each layer that shares this transformer, and nothing in the places of the others."""
    return ModuleList(
        [
            Sequential(
                [nn.Linear(width_in, config.adapter_rank, dtype), nn.Linear(config.adapter_rank, width_out, dtype)]
            )
            if number % config.num_mem_blocks == block_id
            else nn.Module()
            for number in range(len(config.hybrid_layers))
        ]
    )


class Zamba2AttentionDecoderLayer(nn.Module):
    def __init__(self, config: Zamba2Config, dtype: DType, block_id: int) -> None:
        super().__init__()
        self.self_attn = Zamba2Attention(config, dtype, block_id)
        self.feed_forward = Zamba2MLP(config, dtype, block_id)
        self.input_layernorm = nn.RMSNorm(config.attention_hidden_size, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        original_hidden_states: Tensor,
        number: int,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        hidden_states = ops.cat([hidden_states, original_hidden_states], -1)
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, number, mask, cache, position_embeddings)
        hidden_states = self.pre_ff_layernorm(hidden_states)
        hidden_states = self.feed_forward(hidden_states, number)
        return hidden_states


class Zamba2MambaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Zamba2Config, dtype: DType) -> None:
        super().__init__()
        self.mamba = Mamba2Mixer(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        original_hidden_states: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
        positions: Tensor | None,
        transformer_hidden_states: Tensor | None = None,
    ) -> Tensor:
        residual = hidden_states
        if transformer_hidden_states is not None:
            hidden_states = hidden_states + transformer_hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = self.mamba(hidden_states, cache, None)
        hidden_states = residual + hidden_states
        return hidden_states


class Zamba2HybridLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Zamba2Config, dtype: DType, shared_transformer: nn.Module, number: int) -> None:
        super().__init__()
        self.number = number
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, dtype)
        self.mamba_decoder = Zamba2MambaDecoderLayer(config, dtype)
        self.shared_transformer = shared_transformer

    def forward(
        self,
        hidden_states: Tensor,
        original_hidden_states: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
        positions: Tensor,
    ) -> Tensor:
        transformer_hidden_states = self.shared_transformer(
            hidden_states, original_hidden_states, self.number, mask, cache, position_embeddings
        )
        transformer_hidden_states = self.linear(transformer_hidden_states)
        hidden_states = self.mamba_decoder(
            hidden_states, None, None, cache, position_embeddings, None, transformer_hidden_states
        )
        return hidden_states


class Zamba2Model(HybridModel):
    norm_name = "final_layernorm"

    def __init__(self, config: Any, dtype: DType) -> None:
        self.shared: dict[int, Zamba2AttentionDecoderLayer] = {}
        super().__init__(config, dtype)

    def make_layer(self, config: Any, dtype: DType, layer_idx: int) -> nn.Module:
        """With or without one of the shared transformers, which are used in turn."""
        if layer_idx not in config.hybrid_layers:
            return Zamba2MambaDecoderLayer(config, dtype)
        number = config.hybrid_layers.index(layer_idx)
        block_id = number % config.num_mem_blocks
        if block_id in self.shared and config.shares:
            return Zamba2HybridLayer(config, dtype, tied_to(self.shared[block_id]), number)
        self.shared[block_id] = Zamba2AttentionDecoderLayer(config, dtype, block_id)
        return Zamba2HybridLayer(config, dtype, self.shared[block_id], number)

    def rotary(self, config: Any) -> Any:
        """Only if the config wants positions turned."""
        return RotaryEmbedding(config.head_dim) if config.use_mem_rope else None

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        hidden_states = inputs_embeds
        original_hidden_states = ops.clone(inputs_embeds)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        create_recurrent_attention_mask(inputs_embeds, attention_mask)
        rotary_emb: nn.Module | None = self.rotary_emb
        position_embeddings = rotary_emb(hidden_states, positions) if rotary_emb is not None else None
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, original_hidden_states, causal_mask, cache, position_embeddings, positions
            )
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = getattr(self, self.norm_name)(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class Zamba2ForCausalLM(HybridForCausalLM):
    model_class = Zamba2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Zamba2ForCausalLM(Zamba2Config.read(config, where), dtype)
