"""Gemma 4, as `transformers/models/gemma4/modeling_gemma4.py` (5.23) writes its text model, and the unified one.

Gemma 3 with wider heads in layers of full attention, an embedding of its own for every layer, and last layers that
read the keys and values of earlier ones. The unified model has no embeddings of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    FULL,
    SLIDING,
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    causal_lm_loss,
    cos_sin,
    position_ids,
    rotate_half,
    slice_logits_to_keep,
)
from weigh.models.config import DERIVED, ROPE_TYPES, Count, Keys, cannot_run
from weigh.models.gemma import GemmaConfig, GemmaTextScaledWordEmbedding
from weigh.models.gemma2 import Gemma2ForCausalLM, Gemma2Model
from weigh.models.llama import LlamaMLP
from weigh.records import dataclass

MODEL_TYPES = ("gemma4_text", "gemma4_unified_text")

REUSE, STORE = "reuse", "store"
"""A layer reads another's keys and values; a layer's are read by others."""


def kv_sharing_modes(layer_types: tuple[str, ...], shared: int, where: str) -> tuple[str | None, ...]:
    """`kv_sharing_modes`: the last `shared` layers read what the last layer of their type before them has stored.

    Raises:
        InputError: a type has no layer to read.
    """
    if not shared:
        return (None,) * len(layer_types)
    first = len(layer_types) - shared
    own = layer_types[: max(first, 0)]
    if set(own) != set(layer_types):
        hint = "Leave at least one layer of each type keys and values of its own."
        raise InputError(f"is {shared}", where=f"{where}: num_kv_shared_layers", hint=hint)
    stores = {len(own) - 1 - own[::-1].index(layer_type) for layer_type in set(layer_types)}
    return tuple(STORE if i in stores else None if i < first else REUSE for i in range(len(layer_types)))


@dataclass(frozen=True)
class Gemma4TextConfig(GemmaConfig):
    """The settings of `Gemma4TextConfig` that shape memory."""

    vocab_size: int = 262144
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    sliding_window: int = 512
    layer_types: tuple[str, ...] = DERIVED
    final_logit_softcapping: float | None = None
    vocab_size_per_layer_input: int = 262144
    hidden_size_per_layer_input: Count = 256
    attention_k_eq_v: bool = False
    num_kv_shared_layers: Count = 0
    enable_moe_block: bool = False
    use_double_wide_mlp: bool = False
    num_experts: int | None = None
    moe_intermediate_size: int | None = None
    kv_sharing_modes: tuple[str | None, ...] = DERIVED
    head_dims: tuple[int, ...] = DERIVED
    """Of every layer."""
    key_value_heads: tuple[int, ...] = DERIVED
    """Of every layer."""

    @property
    def layer_pattern(self) -> tuple[object, ...]:
        """Of layers that keep keys and values for others, none is like the next."""
        alike = range(self.num_hidden_layers) if self.num_kv_shared_layers else (0,) * self.num_hidden_layers
        return tuple(zip(self.layer_types, self.head_dims, self.key_value_heads, alike, strict=True))

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The last of six layers has full attention, and so has the last of all."""
        found["hidden_act"] = keys.word("hidden_activation", default="gelu_pytorch_tanh")
        super(GemmaConfig, cls).settle(keys, found)
        layers = found["num_hidden_layers"]
        if found["layer_types"] is None:
            found["layer_types"] = tuple(SLIDING if (i + 1) % 6 else FULL for i in range(layers))
        found["layer_types"] = (*found["layer_types"][:-1], FULL)
        keys.check_layer_types(found)
        if keys.config.get("use_bidirectional_attention") == "all":
            cannot_run("bidirectional attention", f"{keys.where}: use_bidirectional_attention")
        _check_rotary(keys, found["layer_types"])
        found["kv_sharing_modes"] = kv_sharing_modes(found["layer_types"], found["num_kv_shared_layers"], keys.where)
        _read_layers(keys, found)
        if found["enable_moe_block"]:
            cannot_run("Gemma 4 with experts", f"{keys.where}: enable_moe_block")
            for name in ("num_experts", "moe_intermediate_size"):
                found[name] = keys.size(name)


@dataclass(frozen=True)
class Gemma4UnifiedTextConfig(Gemma4TextConfig):
    """The settings of `Gemma4UnifiedTextConfig` that shape memory."""

    sliding_window: int = 1024
    hidden_size_per_layer_input: Count = 0


def _check_rotary(keys: Keys, layer_types: tuple[str, ...]) -> None:
    rope = keys.config.get("rope_parameters")
    for layer_type in sorted(set(layer_types)):
        found = (rope.get(layer_type) if isinstance(rope, Mapping) else None) or {}
        kind = found.get("rope_type", "default")
        whole = kind == "proportional" or found.get("partial_rotary_factor", 1.0) == 1.0
        if kind not in (*ROPE_TYPES, "proportional") or not whole:
            cannot_run(f"the rotary embedding {kind!r}", f"{keys.where}: rope_parameters")


def _read_layers(keys: Keys, found: dict[str, Any]) -> None:
    """Heads of every layer: `per_layer_config`, or the settings of layers with full attention that it is made of."""
    heads, width, layers = found["num_key_value_heads"], found["head_dim"], found["num_hidden_layers"]
    given = keys.config.get("per_layer_config")
    if isinstance(given, Mapping):
        own = {int(number): Keys(values, f"{keys.where}: per_layer_config") for number, values in given.items()}
        plain = Keys({})
        each = [own.get(i, plain) for i in range(layers)]
        found["head_dims"] = tuple(k.size("head_dim", default=width) for k in each)
        found["key_value_heads"] = tuple(k.size("num_key_value_heads", default=heads) for k in each)
    else:
        wide = keys.size("global_head_dim", default=512)
        fewer = keys.optional_size("num_global_key_value_heads") if found["attention_k_eq_v"] else None
        full = [layer_type == FULL for layer_type in found["layer_types"]]
        found["head_dims"] = tuple(wide if f else width for f in full)
        found["key_value_heads"] = tuple(fewer or heads if f else heads for f in full)
    for count in found["key_value_heads"]:
        keys.divides("num_key_value_heads", count, "num_attention_heads", found["num_attention_heads"])


class Gemma4RMSNorm(nn.Module):
    role = nn.NORM

    def __init__(self, dim: Size, dtype: DType, with_scale: bool = True) -> None:
        super().__init__()
        self.weight = nn.parameter((dim,), dtype) if with_scale else None

    def _norm(self, hidden_states: Tensor) -> Tensor:
        mean_squared = hidden_states.pow(2).mean(-1, keepdim=True) + 1e-6
        return hidden_states * mean_squared.pow(-0.5)

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed_output = self._norm(hidden_states.float())
        if self.weight is not None:
            normed_output = normed_output * self.weight.float()
        return normed_output.to(hidden_states.dtype)


class Gemma4TextMLP(LlamaMLP):
    def __init__(self, config: Gemma4TextConfig, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        wide = config.use_double_wide_mlp and config.kv_sharing_modes[layer_idx] == REUSE
        width, inner = config.hidden_size, config.intermediate_size * (2 if wide else 1)
        self.gate_proj = nn.Linear(width, inner, dtype)
        self.up_proj = nn.Linear(width, inner, dtype)
        self.down_proj = nn.Linear(inner, width, dtype)
        self.act_fn = nn.Activation(config.hidden_act)


def apply_rotary_pos_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, T, heads, width)."""
    cos = cos.unsqueeze(2)
    sin = sin.unsqueeze(2)
    return (x * cos) + (rotate_half(x) * sin)


Shared = dict[str, tuple[Tensor, Tensor]]
"""Keys and values that later layers read, by type of layer."""


class Gemma4TextAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: Gemma4TextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        heads, kv_heads = config.num_attention_heads, config.key_value_heads[layer_idx]
        self.layer_type = config.layer_types[layer_idx]
        self.sliding_window = config.sliding_window if self.layer_type == SLIDING else None
        self.head_dim = config.head_dims[layer_idx]
        self.num_key_value_groups = heads // kv_heads
        self.attention_dropout = config.attention_dropout
        self.mode = config.kv_sharing_modes[layer_idx]
        self.q_proj = nn.Linear(width, heads * self.head_dim, dtype, bias)
        self.q_norm = Gemma4RMSNorm(self.head_dim, dtype)
        if self.mode != REUSE:
            self.k_norm = Gemma4RMSNorm(self.head_dim, dtype)
            self.v_norm = Gemma4RMSNorm(self.head_dim, dtype, with_scale=False)
            self.k_proj = nn.Linear(width, kv_heads * self.head_dim, dtype, bias)
            same = config.attention_k_eq_v and self.layer_type == FULL
            self.v_proj = None if same else nn.Linear(width, kv_heads * self.head_dim, dtype, bias)
        self.o_proj = nn.Linear(heads * self.head_dim, width, dtype, bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        shared_kv_states: Shared,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        cos, sin = position_embeddings
        query_states = self.q_proj(hidden_states).view(*hidden_shape)
        query_states = self.q_norm(query_states)
        query_states = apply_rotary_pos_emb(query_states, cos, sin)
        query_states = query_states.transpose(1, 2)
        if self.mode == REUSE:
            key_states, value_states = shared_kv_states[self.layer_type]
        else:
            key_states = self.k_proj(hidden_states).view(*hidden_shape)
            value_states = key_states if self.v_proj is None else self.v_proj(hidden_states).view(*hidden_shape)
            key_states = self.k_norm(key_states)
            key_states = apply_rotary_pos_emb(key_states, cos, sin)
            key_states = key_states.transpose(1, 2)
            value_states = self.v_norm(value_states)
            value_states = value_states.transpose(1, 2)
            if cache is not None:
                key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        if self.mode == STORE:
            shared_kv_states[self.layer_type] = key_states, value_states
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Gemma4TextRouter(nn.Module):
    """Counted only."""

    role = "router"

    def __init__(self, config: Gemma4TextConfig, dtype: DType) -> None:
        super().__init__()
        assert config.num_experts is not None
        self.proj = nn.Linear(config.hidden_size, config.num_experts, dtype)
        self.scale = nn.parameter((config.hidden_size,), dtype)
        self.per_expert_scale = nn.parameter((config.num_experts,), dtype)


class Gemma4TextExperts(nn.Module):
    """Counted only."""

    role = "expert"

    def __init__(self, config: Gemma4TextConfig, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        assert experts is not None
        assert inner is not None
        self.gate_up_proj = nn.parameter((experts, 2 * inner, width), dtype)
        self.down_proj = nn.parameter((experts, width, inner), dtype)


class Gemma4TextDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Gemma4TextConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = Gemma4TextAttention(config, dtype, layer_idx)
        self.mlp = Gemma4TextMLP(config, dtype, layer_idx)
        self.input_layernorm = Gemma4RMSNorm(width, dtype)
        self.post_attention_layernorm = Gemma4RMSNorm(width, dtype)
        self.pre_feedforward_layernorm = Gemma4RMSNorm(width, dtype)
        self.post_feedforward_layernorm = Gemma4RMSNorm(width, dtype)
        self.layer_scalar = nn.buffer((1,), dtype)
        self.hidden_size_per_layer_input = config.hidden_size_per_layer_input
        if self.hidden_size_per_layer_input:
            self.act_fn = nn.Activation(config.hidden_act)
            self.per_layer_input_gate = nn.Linear(width, self.hidden_size_per_layer_input, dtype)
            self.per_layer_projection = nn.Linear(self.hidden_size_per_layer_input, width, dtype)
            self.post_per_layer_input_norm = Gemma4RMSNorm(width, dtype)
        if config.enable_moe_block:
            self.router = Gemma4TextRouter(config, dtype)
            self.experts = Gemma4TextExperts(config, dtype)
            self.post_feedforward_layernorm_1 = Gemma4RMSNorm(width, dtype)
            self.post_feedforward_layernorm_2 = Gemma4RMSNorm(width, dtype)
            self.pre_feedforward_layernorm_2 = Gemma4RMSNorm(width, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        per_layer_input: Tensor | None,
        shared_kv_states: Shared,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, shared_kv_states, cache)
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        if self.hidden_size_per_layer_input:
            assert per_layer_input is not None
            residual = hidden_states
            hidden_states = self.per_layer_input_gate(hidden_states)
            hidden_states = self.act_fn(hidden_states)
            hidden_states = hidden_states * per_layer_input
            hidden_states = self.per_layer_projection(hidden_states)
            hidden_states = self.post_per_layer_input_norm(hidden_states)
            hidden_states = residual + hidden_states
        hidden_states = ops.scale_(hidden_states, self.layer_scalar)
        return hidden_states


class Gemma4TextRotaryEmbedding(nn.Module):
    """One for each type of layer, as wide as its heads, whatever part of them turns."""

    role = nn.ROTARY

    def __init__(self, config: Gemma4TextConfig) -> None:
        super().__init__()
        for layer_type in sorted(set(config.layer_types)):
            shape = ((config.head_dims[config.layer_types.index(layer_type)] + 1) // 2,)
            setattr(self, f"{layer_type}_inv_freq", nn.buffer(shape, FLOAT32))
            setattr(self, f"{layer_type}_original_inv_freq", nn.buffer(shape, FLOAT32))

    def forward(self, x: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return cos_sin(positions, getattr(self, f"{layer_type}_inv_freq"), x.dtype)


class Gemma4TextModel(Gemma2Model):
    layer_class: ClassVar[type[Any]] = Gemma4TextDecoderLayer
    norm_class: ClassVar[type[Any]] = Gemma4RMSNorm
    config: Gemma4TextConfig

    def __init__(self, config: Gemma4TextConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        inner = config.hidden_size_per_layer_input
        if inner:
            each = config.num_hidden_layers * inner
            self.embed_tokens_per_layer = GemmaTextScaledWordEmbedding(config.vocab_size_per_layer_input, each, dtype)
            self.per_layer_model_projection = nn.Linear(config.hidden_size, each, dtype)
            self.per_layer_projection_norm = Gemma4RMSNorm(inner, dtype)

    def rotary(self, config: Any) -> nn.Module:
        """One for each type of layer."""
        return Gemma4TextRotaryEmbedding(config)

    def _per_layer(self, x: Tensor) -> Tensor:
        """(B, T, layers * width) to (B, T, layers, width)."""
        shape = (*x.shape[:-1], self.config.num_hidden_layers, self.config.hidden_size_per_layer_input)
        return x.reshape(*shape)

    def get_per_layer_inputs(self, input_ids: Tensor) -> Tensor:
        """Of the tokens alone: (B, T, layers, width)."""
        return self._per_layer(self.embed_tokens_per_layer(input_ids))

    def project_per_layer_inputs(self, inputs_embeds: Tensor, per_layer_inputs: Tensor) -> Tensor:
        """What every layer adds: of the token itself, and of its embedding."""
        per_layer_projection = self.per_layer_model_projection(inputs_embeds) * 0.02
        per_layer_projection = self._per_layer(per_layer_projection)
        per_layer_projection = self.per_layer_projection_norm(per_layer_projection)
        return (per_layer_projection + per_layer_inputs) * 0.7  # type: ignore[no-any-return]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        per_layer_inputs: Tensor | None = None,
        causal_mask_mapping: Any = None,
    ) -> Tensor:
        config = self.config
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids)
        if config.hidden_size_per_layer_input:
            if per_layer_inputs is None:
                per_layer_inputs = self.get_per_layer_inputs(input_ids)
            per_layer_inputs = self.project_per_layer_inputs(inputs_embeds, per_layer_inputs)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        if causal_mask_mapping is None:
            causal_mask_mapping = self.causal_mask_mapping(inputs_embeds, cache, positions, attention_mask)
        hidden_states = inputs_embeds
        position_embeddings = {}
        for layer_type in sorted(set(config.layer_types)):
            position_embeddings[layer_type] = self.rotary_emb(hidden_states, positions, layer_type)
        shared_kv_states: Shared = {}
        first_kv_shared_layer_idx = config.num_hidden_layers - config.num_kv_shared_layers
        for layer_idx, decoder_layer in zip(self.layers.indices, self.layers, strict=True):
            if layer_idx == first_kv_shared_layer_idx and _can_drop(
                hidden_states, causal_mask_mapping, logits_to_keep, cache
            ):
                hidden_states = hidden_states.narrow(1, logits_to_keep)
                if per_layer_inputs is not None:
                    per_layer_inputs = per_layer_inputs.narrow(1, logits_to_keep)
                position_embeddings = {
                    k: (cos.narrow(1, logits_to_keep), sin.narrow(1, logits_to_keep))
                    for k, (cos, sin) in position_embeddings.items()
                }
                causal_mask_mapping = {
                    k: v.narrow(2, logits_to_keep) if v is not None else None for k, v in causal_mask_mapping.items()
                }
            layer_type = config.layer_types[layer_idx]
            per_layer_input = ops.select(per_layer_inputs, 2) if per_layer_inputs is not None else None
            mask, turned = causal_mask_mapping[layer_type], position_embeddings[layer_type]
            hidden_states = decoder_layer(
                hidden_states, per_layer_input, shared_kv_states, turned, mask, positions, cache
            )
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = getattr(self, self.norm_name)(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


def _can_drop(
    hidden_states: Tensor, masks: Mapping[str, Tensor | None], logits_to_keep: int, cache: Cache | None
) -> bool:
    """`_maybe_slice_kv_shared_inputs`: layers that keep nothing need only the positions whose logits are wanted."""
    if hidden_states.shape[1] == 1 or not logits_to_keep:
        return False
    compileable = cache is not None and cache.compileable
    if state.attention == "sdpa" and (logits_to_keep > 1 or compileable):
        return all(mask is not None for mask in masks.values())
    return True


class Gemma4ForCausalLM(Gemma2ForCausalLM):
    model_class = Gemma4TextModel

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config: Any = self.config
        layers = zip(config.layer_types, config.kv_sharing_modes, config.key_value_heads, config.head_dims, strict=True)
        return tuple(
            LayerCache(layout.NOTHING)
            if mode == REUSE
            else LayerCache(layout.SLIDING, heads, width, width, config.sliding_window)
            if layer_type == SLIDING
            else LayerCache(layout.FULL, heads, width, width)
            for layer_type, mode, heads, width in layers
        )

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.model(input_ids, cache, attention_mask, positions, logits_to_keep)
        if hidden_states.shape[1] == input_ids.shape[1]:
            hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.scale_logits(self.lm_head(hidden_states))
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    unified = config.get("model_type") == "gemma4_unified_text"
    kind = Gemma4UnifiedTextConfig if unified else Gemma4TextConfig
    return Gemma4ForCausalLM(kind.read(config, where), dtype)
