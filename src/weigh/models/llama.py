"""Llama, as `transformers/models/llama/modeling_llama.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, K key-value heads, H head width, V vocabulary.

Many families are Llama with a difference or two. They inherit from these classes, as upstream's `modular_*.py` do:
a class names its parts (`attention_class`, `norm_class`, ...), and a subclass names others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    FULL,
    SLIDING,
    Attention,
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    attention_interface,
    causal_lm_loss,
    create_causal_mask,
    create_sliding_window_causal_mask,
    eager_attention,
    fused_linear_loss,
    period_of,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import DERIVED, ROPE_TYPES, Keys, Probability, cannot_run
from weigh.records import dataclass

MODEL_TYPES = ("llama",)


@dataclass(frozen=True)
class DecoderConfig:
    """What the configs of Llama and its relatives share; the defaults are upstream's `LlamaConfig`'s."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = DERIVED
    head_dim: int = DERIVED
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_dropout: Probability = 0.0

    rope_types: ClassVar[tuple[str, ...]] = ROPE_TYPES
    """The rotary embeddings that the family models."""
    heads_divide_width: ClassVar[bool] = False
    """Upstream asks that the heads divide the hidden size, even where `head_dim` is given."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of keys (upstream's `attribute_map`)."""

    @property
    def attention_bias(self) -> bool:
        """The attention's projections have a bias."""
        return False

    @property
    def mlp_bias(self) -> bool:
        """The MLP's projections have a bias."""
        return False

    @property
    def head_bias(self) -> bool:
        """The output layer has a bias."""
        return False

    @property
    def sliding_window(self) -> int | None:
        """How many tokens, itself included, a token sees in a sliding layer."""
        return None

    @property
    def layer_types(self) -> tuple[str, ...]:
        """What each layer attends to: to the window, if there is one and the config does not say more."""
        return (FULL if self.sliding_window is None else SLIDING,) * self.num_hidden_layers

    @property
    def layer_pattern(self) -> Sequence[object]:
        """What makes a layer differ from its neighbours."""
        return self.layer_types

    @property
    def leading_layers(self) -> int:
        """How many layers stand before the pattern begins."""
        return 0

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where, cls.aliases)
        found = keys.fields(cls)
        cls.settle(keys, found)
        return keys.make(cls, found)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """What upstream's `__post_init__` works out and its `validate_architecture` forbids, for values `found`."""
        heads, width = found["num_attention_heads"], found["hidden_size"]
        found["num_key_value_heads"] = found["num_key_value_heads"] or heads
        keys.divides("num_key_value_heads", found["num_key_value_heads"], "num_attention_heads", heads)
        if cls.heads_divide_width:
            keys.divides("num_attention_heads", heads, "hidden_size", width)
        found["head_dim"] = found["head_dim"] or width // heads
        nn.activation(found["hidden_act"])
        keys.rope_type(known=cls.rope_types)
        if found.get("sliding_window") == 1:
            cannot_run("a window of one token", f"{keys.where}: sliding_window")
        keys.cannot_run("is_causal", "bidirectional attention", unless=True)


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """The settings of `LlamaConfig` that shape memory."""

    attention_bias: bool = False
    mlp_bias: bool = False

    heads_divide_width = True


class LlamaMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, dtype, bias)
        self.up_proj = nn.Linear(width, inner, dtype, bias)
        self.down_proj = nn.Linear(inner, width, dtype, bias)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        fused = state.overrides.get("swiglu")
        if fused is not None:
            return self.down_proj(fused(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]
        down_proj: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj


class LlamaAttention(nn.Module):
    role = nn.ATTENTION
    eager: Attention = staticmethod(eager_attention)

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, (bias, out_bias) = config.hidden_size, self.biases(config)
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, dtype, bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, dtype, bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, dtype, bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, dtype, out_bias)
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == SLIDING else None

    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Whether queries, keys and values have a bias, and whether the output has one."""
        return config.attention_bias, config.attention_bias

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) to queries (B, N, T, H), keys and values (B, K, T, H)."""
        batch, length = hidden_states.shape[:-1]
        query_states = self.q_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions."""
        cos, sin = position_embeddings
        return apply_rotary_pos_emb(query, key, cos, sin)

    def gather(self, attn_output: Tensor) -> Tensor:
        """What comes before the output projection."""
        return attn_output

    def finish(self, attn_output: Tensor) -> Tensor:
        """What comes after the output projection."""
        return attn_output

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_states, key_states, value_states = self.project(hidden_states)
        query_states, key_states = self.rotate(query_states, key_states, position_embeddings)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path, self.sliding_window)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface(self.eager)
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.gather(attn_output)
        attn_output = self.o_proj(attn_output)
        attn_output = self.finish(attn_output)
        return attn_output, attn_weights


class LlamaDecoderLayer(nn.Module):
    role = nn.BLOCK
    attention_class: ClassVar[type[Any]] = LlamaAttention
    mlp_class: ClassVar[type[Any]] = LlamaMLP
    norm_class: ClassVar[type[Any]] = nn.RMSNorm

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        self.mlp = self.mlp_class(config, dtype)
        self.input_layernorm = self.norm_class(config.hidden_size, dtype)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, dtype)

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
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class LlamaModel(nn.Module):
    layer_class: ClassVar[type[Any]] = LlamaDecoderLayer
    norm_class: ClassVar[type[Any]] = nn.RMSNorm
    embedding_class: ClassVar[type[nn.Embedding]] = nn.Embedding
    norm_name: ClassVar[str] = "norm"
    """What upstream calls the last norm."""

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = self.embedding_class(config.vocab_size, config.hidden_size, dtype)
        lead = min(config.leading_layers, config.num_hidden_layers - 1)
        self.layers = nn.Stack(
            "model.layers",
            config.num_hidden_layers,
            lambda layer_idx: self.make_layer(config, dtype, layer_idx),
            period_of(config.layer_pattern[lead:]),
            lead,
        )
        setattr(self, self.norm_name, self.norm_class(config.hidden_size, dtype))
        self.rotary_emb = self.rotary(config)

    def make_layer(self, config: Any, dtype: DType, layer_idx: int) -> nn.Module:
        """One layer."""
        return self.layer_class(config, dtype, layer_idx)  # type: ignore[no-any-return]

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """The rotary embedding."""
        return RotaryEmbedding(config.head_dim)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids to `inputs_embeds`."""
        return self.embed_tokens(input_ids)  # type: ignore[no-any-return]

    def place(self, positions: Tensor | None, inputs_embeds: Tensor, cache: Cache | None) -> tuple[Any, Tensor]:
        """The positions that the masks are made with (perhaps None), and those that are rotated."""
        if positions is None:
            positions = position_ids(inputs_embeds.shape[1], cache)
        return positions, positions

    def pass_on(self, text_positions: Tensor | None, positions: Tensor) -> Tensor | None:
        """The positions that upstream gives its layers, and so a checkpoint keeps."""
        return text_positions

    def enter(self, inputs_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """What upstream calls `inputs_embeds` from here on, alive until the end, and the first `hidden_states`."""
        return inputs_embeds, inputs_embeds

    def begin(self, hidden_states: Tensor) -> Tensor:
        """What comes before the first layer."""
        return hidden_states

    def mask_types(self) -> Iterable[str]:
        """The types of layers for which upstream makes a mask."""
        return dict.fromkeys(self.config.layer_types)

    def causal_mask_mapping(
        self, inputs_embeds: Tensor, cache: Cache | None, positions: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Tensor | None]:
        """The mask of every type of layer."""
        window, types = self.config.sliding_window, self.config.layer_types
        masks = {}
        for layer_type in self.mask_types():
            if layer_type == FULL:
                cache_window = None if FULL in types else window
                masks[FULL] = create_causal_mask(
                    inputs_embeds, cache, positions, attention_mask, cache_window=cache_window
                )
            else:
                assert window is not None
                cache_window = window if SLIDING in types else None
                masks[SLIDING] = create_sliding_window_causal_mask(
                    inputs_embeds, cache, positions, attention_mask, window, cache_window
                )
        return masks

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The cosines and sines of every type of layer."""
        return dict.fromkeys(self.config.layer_types, self.rotary_emb(hidden_states, positions))

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        inputs_embeds: Tensor | None = None,
        causal_mask_mapping: dict[str, Tensor | None] | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids)
        text_positions, positions = self.place(positions, inputs_embeds, cache)
        if causal_mask_mapping is None:
            causal_mask_mapping = self.causal_mask_mapping(inputs_embeds, cache, text_positions, attention_mask)
        inputs_embeds, hidden_states = self.enter(inputs_embeds)
        position_embeddings = self.position_embeddings(hidden_states, positions)
        hidden_states = self.begin(hidden_states)
        passed = self.pass_on(text_positions, positions)
        for layer_idx, decoder_layer in zip(self.layers.indices, self.layers, strict=True):
            layer_type = self.config.layer_types[layer_idx]
            mask = causal_mask_mapping[layer_type]
            hidden_states = decoder_layer(hidden_states, position_embeddings[layer_type], mask, passed, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = getattr(self, self.norm_name)(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class LlamaForCausalLM(CausalModel):
    model_class: ClassVar[type[LlamaModel]] = LlamaModel

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.model = self.model_class(config, dtype)
        self.lm_head = nn.Head(
            self.model.embed_tokens if config.tie_word_embeddings else None,
            config.hidden_size,
            config.vocab_size,
            dtype,
            config.head_bias,
        )

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads, width, window = config.num_key_value_heads, config.head_dim, config.sliding_window
        return tuple(
            LayerCache(layout.SLIDING, heads, width, width, window)
            if layer_type == SLIDING
            else LayerCache(layout.FULL, heads, width, width)
            for layer_type in config.layer_types
        )

    def scale_logits(self, logits: Tensor) -> Tensor:
        """What a family does to its logits."""
        return logits

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
        loss = fused_linear_loss(self.lm_head, hidden_states, labels)
        if loss is not None:
            return CausalOutput(None, loss, cache)
        logits = self.scale_logits(self.lm_head(hidden_states))
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LlamaForCausalLM(LlamaConfig.read(config, where), dtype)
