"""Bloom, as `transformers/models/bloom/modeling_bloom.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.

It has one attention, its own, called eager; upstream refuses to load it with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.alibi import alibi_slopes, build_alibi_tensor
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    causal_lm_loss,
    create_causal_mask,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("bloom",)


@dataclass(frozen=True, slots=True)
class BloomConfig:
    """The settings of `BloomConfig` that shape memory."""

    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    apply_residual_connection_post_layernorm: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> BloomConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("n_embed", "hidden_size", default=64)
        heads = keys.size("n_head", "num_attention_heads", default=8)
        keys.divides("n_head", heads, "hidden_size", width)
        if keys.size("pretraining_tp", default=1) > 1 and keys.flag("slow_but_exact", default=False):
            keys.cannot_run("slow_but_exact", "Bloom with its layers computed in slices")
        return cls(
            vocab_size=keys.size("vocab_size", default=250880),
            hidden_size=width,
            n_layer=keys.size("n_layer", "num_hidden_layers", default=2),
            n_head=heads,
            apply_residual_connection_post_layernorm=keys.flag(
                "apply_residual_connection_post_layernorm", default=False
            ),
            hidden_dropout=keys.fraction("hidden_dropout", default=0.0),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


def dropout_add(x: Tensor, residual: Tensor, prob: float, training: bool) -> Tensor:
    """Dropout, then the residual."""
    out = ops.dropout(x, prob, training)
    out = residual + out
    return out


def bloom_gelu_forward(x: Tensor) -> Tensor:
    """The tanh approximation, spelled out."""
    return x * 0.5 * (1.0 + ops.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def bloom_gelu_back(g: Tensor, x: Tensor) -> Tensor:
    """Its gradient, spelled out."""
    tanh_out = ops.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
    ff = 0.5 * x * (ops.one_minus(tanh_out * tanh_out) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + tanh_out)
    return ff * g


class GeLUFunction(Op):
    """Saves its input alone; the parts of the formula are made again in the backward pass."""

    name = "GeLUFunction"
    view = True
    """Its parts note what they cost; the whole notes nothing."""
    composite = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx:
            ctx.save(x)
        with no_grad():
            return bloom_gelu_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        tmp = bloom_gelu_back(grad, x)
        return [tmp]


class BloomGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return apply(GeLUFunction, x)  # type: ignore[no-any-return]


class BloomAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: BloomConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.n_head
        self.head_dim = width // config.n_head
        self.hidden_dropout = config.hidden_dropout
        self.query_key_value = nn.Linear(width, 3 * width, dtype, bias=True)
        self.dense = nn.Linear(width, width, dtype, bias=True)
        self.attention_dropout = nn.Dropout(config.attention_dropout)

    def _reshape(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, T, H): views of one storage."""
        batch_size, seq_length, _ = fused_qkv.shape
        fused_qkv = fused_qkv.view(batch_size, seq_length, self.num_heads, 3, self.head_dim)
        query_layer = ops.select(fused_qkv, 3).transpose(1, 2)
        key_layer = ops.select(fused_qkv, 3).transpose(1, 2)
        value_layer = ops.select(fused_qkv, 3).transpose(1, 2)
        return query_layer, key_layer, value_layer

    def _merge_heads(self, x: Tensor) -> Tensor:
        batch_size_and_num_heads, seq_length, _ = x.shape
        x = x.view(batch_size_and_num_heads // self.num_heads, self.num_heads, seq_length, self.head_dim)
        x = x.permute(0, 2, 1, 3)
        return x.reshape(x.shape[0], seq_length, self.num_heads * self.head_dim)

    def forward(
        self, hidden_states: Tensor, residual: Tensor, layer_past: Cache | None, mask: Tensor | None, alibi: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch_size, q_length, _ = hidden_states.shape
        fused_qkv = self.query_key_value(hidden_states)
        query_layer, key_layer, value_layer = self._reshape(fused_qkv)
        if layer_past is not None:
            key_layer, value_layer = layer_past.update(key_layer, value_layer, self.path)
        heads = batch_size * self.num_heads
        query_layer = query_layer.reshape(heads, -1, self.head_dim)
        key_layer = key_layer.reshape(heads, -1, self.head_dim).transpose(-1, -2)
        value_layer = value_layer.reshape(heads, -1, self.head_dim)
        attention_scores = ops.baddbmm(alibi, query_layer, key_layer)
        attn_weights = attention_scores.view(batch_size, self.num_heads, q_length, -1)
        if mask is not None:
            attn_weights = attn_weights + mask
        attention_probs = ops.softmax(attn_weights, dtype=FLOAT32).to(query_layer.dtype)
        attention_probs = self.attention_dropout(attention_probs)
        attention_probs_reshaped = attention_probs.view(heads, q_length, -1)
        context_layer = ops.bmm(attention_probs_reshaped, value_layer)
        context_layer = self._merge_heads(context_layer)
        output_tensor = self.dense(context_layer)
        output_tensor = dropout_add(output_tensor, residual, self.hidden_dropout, self.training)
        return output_tensor, attention_probs


class BloomMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: BloomConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense_h_to_4h = nn.Linear(width, 4 * width, dtype, bias=True)
        self.gelu_impl = BloomGelu()
        self.dense_4h_to_h = nn.Linear(4 * width, width, dtype, bias=True)
        self.hidden_dropout = config.hidden_dropout

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        hidden_states = self.gelu_impl(self.dense_h_to_4h(hidden_states))
        intermediate_output = self.dense_4h_to_h(hidden_states)
        output = dropout_add(intermediate_output, residual, self.hidden_dropout, self.training)
        return output


class BloomBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: BloomConfig, dtype: DType) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.self_attention = BloomAttention(config, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.mlp = BloomMLP(config, dtype)
        self.apply_residual_connection_post_layernorm = config.apply_residual_connection_post_layernorm

    def forward(
        self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None, alibi: Tensor
    ) -> tuple[Tensor, Tensor]:
        layernorm_output = self.input_layernorm(hidden_states)
        residual = layernorm_output if self.apply_residual_connection_post_layernorm else hidden_states
        attention_output, attn_weights = self.self_attention(layernorm_output, residual, layer_past, mask, alibi)
        layernorm_output = self.post_attention_layernorm(attention_output)
        residual = layernorm_output if self.apply_residual_connection_post_layernorm else attention_output
        output = self.mlp(layernorm_output, residual)
        return output, attn_weights


class BloomModel(nn.Module):
    def __init__(self, config: BloomConfig, dtype: DType) -> None:
        super().__init__()
        self.num_heads = config.n_head
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: BloomBlock(config, dtype))
        self.ln_f = nn.LayerNorm(config.hidden_size, dtype)

    def forward(self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        inputs_embeds = self.word_embeddings(input_ids)
        batch_size, seq_length, _ = inputs_embeds.shape
        past_length = cache.offset(None) if cache is not None else 0
        seq_length_with_past = past_length + seq_length  # a tensor where the cache is static
        hidden_states = self.word_embeddings_layernorm(inputs_embeds)
        if attention_mask is None:
            kv_length = cache.mask_length(seq_length) if cache is not None else seq_length
            slopes = alibi_slopes(self.num_heads)
            alibi = slopes.view(self.num_heads, 1, 1) * ops.arange(kv_length)
            alibi = ops.repeat(alibi, batch_size, 1, 1).to(hidden_states.dtype)
        else:
            alibi = build_alibi_tensor(attention_mask, self.num_heads, hidden_states.dtype)
        causal_mask = create_causal_mask(inputs_embeds, cache, None, attention_mask, attention="eager")
        for block in self.h:
            outputs = block(hidden_states, cache, causal_mask, alibi)
            hidden_states = outputs[0]
        if cache is not None:
            cache.advance(seq_length)
        hidden_states = self.ln_f(hidden_states)
        del past_length, seq_length_with_past
        return hidden_states  # type: ignore[no-any-return]


class BloomForCausalLM(CausalModel):
    takes_positions = False

    def __init__(self, config: BloomConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layer
        self.transformer = BloomModel(config, dtype)
        tied_to = self.transformer.word_embeddings if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.n_layer, config.n_head, config.hidden_size // config.n_head)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.transformer(input_ids, cache, attention_mask)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return BloomForCausalLM(BloomConfig.read(config, where), dtype)
