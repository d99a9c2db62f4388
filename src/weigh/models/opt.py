"""OPT, as `transformers/models/opt/modeling_opt.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, INT64, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    causal_lm_loss,
    check_positions,
    create_causal_mask,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("opt",)


@dataclass(frozen=True, slots=True)
class OPTConfig:
    """The settings of `OPTConfig` that shape memory."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = False
    word_embed_proj_dim: int = 768
    dropout: float = 0.1
    attention_dropout: float = 0.0
    num_attention_heads: int = 12
    activation_function: str = "relu"
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> OPTConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("hidden_size", default=768)
        heads = keys.size("num_attention_heads", default=12)
        keys.divides("num_attention_heads", heads, "hidden_size", width)
        activation = keys.word("activation_function", default="relu")
        nn.activation(activation)
        if keys.fraction("layerdrop", default=0.0):
            keys.cannot_run("layerdrop", "OPT that drops layers at random")
        return cls(
            vocab_size=keys.size("vocab_size", default=50272),
            hidden_size=width,
            num_hidden_layers=keys.size("num_hidden_layers", default=12),
            ffn_dim=keys.size("ffn_dim", default=3072),
            max_position_embeddings=keys.size("max_position_embeddings", default=2048),
            do_layer_norm_before=keys.flag("do_layer_norm_before", default=True),
            remove_final_layer_norm=keys.flag("_remove_final_layer_norm", default=False),
            word_embed_proj_dim=keys.optional_size("word_embed_proj_dim") or width,
            dropout=keys.fraction("dropout", default=0.1),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            num_attention_heads=heads,
            activation_function=activation,
            enable_bias=keys.flag("enable_bias", default=True),
            layer_norm_elementwise_affine=keys.flag("layer_norm_elementwise_affine", default=True),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class OPTLearnedPositionalEmbedding(nn.Embedding):
    """Two more rows than there are positions."""

    offset = 2

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: DType) -> None:
        super().__init__(num_embeddings + self.offset, embedding_dim, dtype)

    def forward(self, positions: Tensor) -> Tensor:
        return super().forward(positions + self.offset)


class OPTAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.enable_bias
        self.num_heads = config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width, dtype, bias)
        self.v_proj = nn.Linear(width, width, dtype, bias)
        self.q_proj = nn.Linear(width, width, dtype, bias)
        self.out_proj = nn.Linear(width, width, dtype, bias)

    def forward(self, hidden_states: Tensor, cache: Cache | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        bsz, tgt_len, _ = hidden_states.shape
        query_states = self.q_proj(hidden_states) * 0.125
        query_states = query_states.view(bsz, -1, self.num_heads, self.head_dim).transpose(1, 2)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        key_states = key_states.view(bsz, -1, self.num_heads, self.head_dim).transpose(1, 2)
        value_states = value_states.view(bsz, -1, self.num_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.dropout if self.training else 0.0
        attention = attention_interface()
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1)
        attn_output = attn_output.reshape(bsz, tgt_len, -1).contiguous()
        attn_output = self.out_proj(attn_output)
        return attn_output, attn_weights


class OPTDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__()
        width, affine = config.hidden_size, config.layer_norm_elementwise_affine
        self.self_attn = OPTAttention(config, dtype)
        self.do_layer_norm_before = config.do_layer_norm_before
        self.dropout = config.dropout
        self.activation_fn = nn.Activation(config.activation_function)
        self.self_attn_layer_norm = nn.LayerNorm(width, dtype, elementwise_affine=affine)
        self.fc1 = nn.MlpLinear(width, config.ffn_dim, dtype, config.enable_bias)
        self.fc2 = nn.MlpLinear(config.ffn_dim, width, dtype, config.enable_bias)
        self.final_layer_norm = nn.LayerNorm(width, dtype, elementwise_affine=affine)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None, positions: Tensor) -> Tensor:
        residual = hidden_states
        if self.do_layer_norm_before:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, cache, mask)
        hidden_states = ops.dropout(hidden_states, self.dropout, self.training)
        hidden_states = residual + hidden_states
        if not self.do_layer_norm_before:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states_shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        residual = hidden_states
        if self.do_layer_norm_before:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        hidden_states = ops.dropout(hidden_states, self.dropout, self.training)
        hidden_states = (residual + hidden_states).view(*hidden_states_shape)
        if not self.do_layer_norm_before:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states


class OPTDecoder(nn.Module):
    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__()
        width, projected = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, projected, dtype)
        self.embed_positions = OPTLearnedPositionalEmbedding(config.max_position_embeddings, width, dtype)
        self.project_out = nn.Linear(width, projected, dtype) if projected != width else None
        self.project_in = nn.Linear(projected, width, dtype) if projected != width else None
        self.final_layer_norm = None
        if config.do_layer_norm_before and not config.remove_final_layer_norm:
            affine = config.layer_norm_elementwise_affine
            self.final_layer_norm = nn.LayerNorm(width, dtype, elementwise_affine=affine)
        self.layers = nn.Stack(
            "model.decoder.layers", config.num_hidden_layers, lambda _: OPTDecoderLayer(config, dtype)
        )

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        most = self.embed_positions.weight.shape[0] - self.embed_positions.offset
        check_positions("OPT", "max_position_embeddings", most, input_ids.shape[1], cache)
        inputs_embeds = self.embed_tokens(input_ids)
        batch, length, _ = inputs_embeds.shape
        past_seen_tokens = cache.length if cache is not None else 0
        position_attention_mask = attention_mask
        if position_attention_mask is None:
            position_attention_mask = ops.ones((batch, past_seen_tokens + length), FLOAT32)
        if positions is None:
            positions = ops.cumsum(position_attention_mask)
            positions = (positions * position_attention_mask - 1).to(INT64)
            positions = positions.narrow(1, length, past_seen_tokens)
        causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask)
        pos_embeds = self.embed_positions(positions)
        if self.project_in is not None:
            inputs_embeds = self.project_in(inputs_embeds)
        hidden_states = inputs_embeds + pos_embeds
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, causal_mask, cache, positions)
        if cache is not None:
            cache.advance(length)
        if self.final_layer_norm is not None:
            hidden_states = self.final_layer_norm(hidden_states)
        if self.project_out is not None:
            hidden_states = self.project_out(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class OPTModel(nn.Module):
    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__()
        self.decoder = OPTDecoder(config, dtype)


class OPTForCausalLM(CausalModel):
    def __init__(self, config: OPTConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.model = OPTModel(config, dtype)
        self.lm_head = nn.Head(
            self.model.decoder.embed_tokens if config.tie_word_embeddings else None,
            config.word_embed_proj_dim,
            config.vocab_size,
            dtype,
        )

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(
            config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads
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
        hidden_states = self.model.decoder(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states).contiguous()
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return OPTForCausalLM(OPTConfig.read(config, where), dtype)
