"""Falcon, as `transformers/models/falcon/modeling_falcon.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, K key-value heads, H head width, V vocabulary.

Its attention mask is always made, so that no FlashAttention runs; with one key-value head, the mask and no fused kernel
that broadcasts heads, it is single ops on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT64, DType
from weigh.errors import InputError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.alibi import build_alibi_tensor
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    RotaryEmbedding,
    StaticCache,
    apply_rotary_pos_emb,
    causal_lm_loss,
    create_causal_mask,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("falcon",)


@dataclass(frozen=True, slots=True)
class FalconConfig:
    """The settings of `FalconConfig` that shape memory."""

    vocab_size: int = 65024
    hidden_size: int = 4544
    num_hidden_layers: int = 32
    num_attention_heads: int = 71
    num_ln_in_parallel_attn: int | None = None
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    num_kv_heads: int = 71
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    ffn_hidden_size: int = 4 * 4544
    activation: str = "gelu"
    tie_word_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> FalconConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("n_embed", "hidden_size", default=4544)
        heads = keys.size("num_attention_heads", default=71)
        keys.divides("num_attention_heads", heads, "hidden_size", width)
        keys.rope_type()
        activation = keys.word("activation", default="gelu")
        nn.activation(activation)
        kv_heads = keys.optional_size("num_kv_heads") or heads
        new = keys.flag("new_decoder_architecture", default=False)
        if new:
            keys.divides("num_kv_heads", kv_heads, "num_attention_heads", heads)
        norms = keys.optional_size("num_ln_in_parallel_attn") or (2 if new else None)
        parallel = keys.flag("parallel_attn", default=True)
        if (new and not parallel) or (not new and parallel and norms == 2):
            raise InputError(
                "does not fit the decoder architecture: upstream's own forward pass fails",
                where=f"{where}: {'parallel_attn' if new else 'num_ln_in_parallel_attn'}",
                hint="The new architecture runs attention and MLP in parallel; only it has two norms before them.",
            )
        return cls(
            vocab_size=keys.size("vocab_size", default=65024),
            hidden_size=width,
            num_hidden_layers=keys.size("num_hidden_layers", default=32),
            num_attention_heads=heads,
            num_ln_in_parallel_attn=norms,
            hidden_dropout=keys.fraction("hidden_dropout", default=0.0),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            num_kv_heads=kv_heads,
            alibi=keys.flag("alibi", default=False),
            new_decoder_architecture=new,
            multi_query=keys.flag("multi_query", default=True),
            parallel_attn=parallel,
            bias=keys.flag("bias", default=False),
            ffn_hidden_size=keys.optional_size("ffn_hidden_size") or 4 * width,
            activation=activation,
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class FalconLinear(nn.Linear):
    """A product with the transposed weight, then the bias: under autocast the cast of the weight is not cached."""

    def forward(self, x: Tensor) -> Tensor:
        hidden_states = x.matmul(self.weight.t())
        if self.bias is None:
            return hidden_states
        return hidden_states + self.bias


def dropout_add(x: Tensor, residual: Tensor, prob: float, training: bool) -> Tensor:
    """Dropout, then the residual."""
    out = ops.dropout(x, prob, training)
    out = residual + out
    return out


class FalconAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: FalconConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        if config.new_decoder_architecture:
            qkv_out_dim = (config.num_kv_heads * 2 + config.num_attention_heads) * self.head_dim
        elif config.multi_query:
            qkv_out_dim = width + 2 * self.head_dim
        else:
            qkv_out_dim = 3 * width
        self.query_key_value = FalconLinear(width, qkv_out_dim, dtype, config.bias)
        self.new_decoder_architecture = config.new_decoder_architecture
        self.multi_query = config.multi_query
        self.dense = FalconLinear(width, width, dtype, config.bias)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.num_kv_heads = config.num_kv_heads if self.new_decoder_architecture or not self.multi_query else 1

    def _split_heads(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, heads, H): views, but for heads that are picked by a list or repeated."""
        batch, seq_len, _ = fused_qkv.shape
        if self.new_decoder_architecture:
            groups = self.num_heads // self.num_kv_heads
            qkv = fused_qkv.view(batch, seq_len, -1, groups + 2, self.head_dim)
            query = qkv.narrow(3, groups)
            key = ops.index_list(qkv, 3)
            value = ops.index_list(qkv, 3)
            key = key.expand(*query.shape)
            value = value.expand(*query.shape)
            flat = (batch, seq_len, self.num_heads, self.head_dim)
            query, key, value = [x.reshape(*flat) for x in (query, key, value)]
            return query, key, value
        if not self.multi_query:
            fused_qkv = fused_qkv.view(batch, seq_len, self.num_heads, 3, self.head_dim)
            return ops.select(fused_qkv, 3), ops.select(fused_qkv, 3), ops.select(fused_qkv, 3)
        fused_qkv = fused_qkv.view(batch, seq_len, self.num_heads + 2, self.head_dim)
        return fused_qkv.narrow(2, self.num_heads), ops.index_list(fused_qkv, 2), ops.index_list(fused_qkv, 2)

    def _merge_heads(self, x: Tensor) -> Tensor:
        batch_size_and_num_heads, seq_length, _ = x.shape
        x = x.view(batch_size_and_num_heads // self.num_heads, self.num_heads, seq_length, self.head_dim)
        x = x.permute(0, 2, 1, 3)
        return x.reshape(x.shape[0], seq_length, self.num_heads * self.head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        layer_past: Cache | None,
        mask: Tensor | None,
        positions: Tensor,
        alibi: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        fused_qkv = self.query_key_value(hidden_states)
        num_kv_heads = self.num_heads if self.new_decoder_architecture else self.num_kv_heads
        query_layer, key_layer, value_layer = self._split_heads(fused_qkv)
        batch, length, _, _ = query_layer.shape
        query_layer = query_layer.transpose(1, 2).reshape(batch, self.num_heads, length, self.head_dim)
        key_layer = key_layer.transpose(1, 2).reshape(batch, num_kv_heads, length, self.head_dim)
        value_layer = value_layer.transpose(1, 2).reshape(batch, num_kv_heads, length, self.head_dim)
        if alibi is None:
            cos, sin = position_embeddings
            query_layer, key_layer = apply_rotary_pos_emb(query_layer, key_layer, cos, sin)
        if layer_past is not None:
            key_layer, value_layer = layer_past.update(key_layer, value_layer, self.path)
        kv_length = key_layer.shape[-2]
        sdpa = ops.scaled_dot_product_attention
        dropout = self.attention_dropout.p if self.training else 0.0
        if alibi is None:
            if state.attention == "sdpa":
                attn_output = sdpa(query_layer, key_layer, value_layer, mask, 0.0, False, False)
                attention_scores = None
            else:
                attention_scores = query_layer.matmul(key_layer.transpose(-1, -2))
                attention_scores = ops.div_(attention_scores)
                attention_scores = ops.softmax(_masked(attention_scores, mask), dtype=hidden_states.dtype)
                attn_output = attention_scores.matmul(value_layer)
            attn_output = attn_output.view(batch, self.num_heads, length, self.head_dim)
            attn_output = attn_output.permute(0, 2, 1, 3)
            attn_output = attn_output.reshape(batch, length, self.num_heads * self.head_dim)
            attn_output = self.dense(attn_output)
            return attn_output, attention_scores
        if state.attention == "sdpa":
            attn_output = sdpa(query_layer, key_layer, value_layer, mask, dropout, False, False)
            attn_output = attn_output.transpose(1, 2)
            attn_output = attn_output.reshape(batch, length, self.num_heads * self.head_dim)
            attn_output = self.dense(attn_output)
            return attn_output, None
        matmul_result = query_layer.matmul(key_layer.transpose(-1, -2))
        attention_scores = matmul_result.view(batch, self.num_heads, length, kv_length)
        if attention_scores.dtype in (FLOAT16, BFLOAT16):
            attention_scores = attention_scores.to(FLOAT32)
        attention_logits = attention_scores + alibi.view(batch, self.num_heads, 1, -1)
        attention_logits = ops.mul_(attention_logits)
        attention_probs = ops.softmax(_masked(attention_logits, mask), dtype=hidden_states.dtype)
        attention_probs = self.attention_dropout(attention_probs)
        attention_probs_reshaped = attention_probs.view(batch, self.num_heads, length, kv_length)
        attn_output = attention_probs_reshaped.matmul(value_layer).view(-1, length, self.head_dim)
        attn_output = self._merge_heads(attn_output)
        attn_output = self.dense(attn_output)
        return attn_output, attention_probs


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return scores + mask


class FalconMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: FalconConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_hidden_size
        self.dense_h_to_4h = FalconLinear(width, inner, dtype, config.bias)
        self.act = nn.Activation(config.activation)
        self.dense_4h_to_h = FalconLinear(inner, width, dtype, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.dense_h_to_4h(x))
        x = self.dense_4h_to_h(x)
        return x


class FalconDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: FalconConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attention = FalconAttention(config, dtype)
        self.mlp = FalconMLP(config, dtype)
        self.config = config
        if not config.parallel_attn:
            self.post_attention_layernorm = nn.LayerNorm(width, dtype)
            self.input_layernorm = nn.LayerNorm(width, dtype)
        elif config.num_ln_in_parallel_attn == 2:
            self.ln_attn = nn.LayerNorm(width, dtype)
            self.ln_mlp = nn.LayerNorm(width, dtype)
        else:
            self.input_layernorm = nn.LayerNorm(width, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        layer_past: Cache | None,
        mask: Tensor | None,
        positions: Tensor,
        alibi: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        config = self.config
        residual = hidden_states
        if config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2:
            attention_layernorm_out = self.ln_attn(hidden_states)
            mlp_layernorm_out = self.ln_mlp(hidden_states)
        else:
            attention_layernorm_out = self.input_layernorm(hidden_states)
        attention_output, attn_weights = self.self_attention(
            attention_layernorm_out, layer_past, mask, positions, alibi, position_embeddings
        )
        if not config.new_decoder_architecture:
            if config.parallel_attn:
                mlp_layernorm_out = attention_layernorm_out
            else:
                residual = dropout_add(attention_output, residual, config.attention_dropout, self.training)
                mlp_layernorm_out = self.post_attention_layernorm(residual)
        if config.new_decoder_architecture and config.parallel_attn and config.num_ln_in_parallel_attn == 1:
            mlp_layernorm_out = attention_layernorm_out
        mlp_output = self.mlp(mlp_layernorm_out)
        if config.new_decoder_architecture or config.parallel_attn:
            mlp_output = ops.add_(mlp_output, attention_output)
        output = dropout_add(mlp_output, residual, config.hidden_dropout, self.training)
        return output, attn_weights


class FalconModel(nn.Module):
    def __init__(self, config: FalconConfig, dtype: DType) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.use_alibi = config.alibi
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.h = nn.Stack("transformer.h", config.num_hidden_layers, lambda _: FalconDecoderLayer(config, dtype))
        self.ln_f = nn.LayerNorm(config.hidden_size, dtype)
        self.rotary_emb = RotaryEmbedding(config.head_dim)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        inputs_embeds = self.word_embeddings(input_ids)
        alibi = None
        past_key_values_length = cache.length if cache is not None else 0
        batch_size, seq_length, _ = inputs_embeds.shape
        if self.use_alibi:
            if isinstance(cache, StaticCache):
                raise UsageError(
                    "Falcon with ALiBi has biases for the tokens seen, and a static cache more places: upstream fails",
                    where="cache",
                    hint="Use the dynamic cache.",
                )
            mask = attention_mask
            if mask is None:
                mask = ops.ones((batch_size, past_key_values_length + seq_length), INT64)
            alibi = build_alibi_tensor(mask, self.num_heads, inputs_embeds.dtype, through=BFLOAT16)
        if positions is None:
            positions = position_ids(seq_length, cache)
        causal_mask = None
        if cache is not None and cache.dense_masks:
            # what `generate` has prepared for a static cache, if it thought that a mask was needed
            causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask)
            attention_mask = None
        if causal_mask is None:
            causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask, allow_is_causal_skip=False)
        if alibi is not None and causal_mask is not None:
            if causal_mask.dtype is BOOL:
                causal_mask = ops.where(
                    causal_mask, ops.full((), inputs_embeds.dtype), ops.scalar_tensor(inputs_embeds.dtype)
                )
            alibi = alibi.reshape(batch_size, -1, *alibi.shape[1:])
            causal_mask = ops.masked_fill(alibi / 8.0, ops.less_than(causal_mask))
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, positions)
        for block in self.h:
            outputs = block(hidden_states, cache, causal_mask, positions, alibi, position_embeddings)
            hidden_states = outputs[0]
        if cache is not None:
            cache.advance(seq_length)
        hidden_states = self.ln_f(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class FalconForCausalLM(CausalModel):
    def __init__(self, config: FalconConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.transformer = FalconModel(config, dtype)
        tied_to = self.transformer.word_embeddings if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """Keys and values are repeated for every head before they are kept, in the new architecture."""
        config = self.config
        heads, repeats = (1, 1) if config.multi_query else (config.num_kv_heads, 1)
        if config.new_decoder_architecture:
            heads, repeats = config.num_kv_heads, config.num_attention_heads // config.num_kv_heads
        kept = layout.LayerCache(layout.FULL, heads, config.head_dim, config.head_dim, repeats=repeats)
        return (kept,) * config.num_hidden_layers

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.transformer(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        lm_logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(lm_logits, labels, self.config.vocab_size)
        return CausalOutput(lm_logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return FalconForCausalLM(FalconConfig.read(config, where), dtype)
