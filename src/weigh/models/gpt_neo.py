"""GPT-Neo, as `transformers/models/gpt_neo/modeling_gpt_neo.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, P positions, V vocabulary.

A "local" layer sees a window, which its own mask cuts out of scores over everything: its cache keeps every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    causal_lm_loss,
    check_positions,
    create_causal_mask,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("gpt_neo",)


@dataclass(frozen=True, slots=True)
class GPTNeoConfig:
    """The settings of `GPTNeoConfig` that shape memory."""

    vocab_size: int = 50257
    max_position_embeddings: int = 2048
    hidden_size: int = 2048
    num_layers: int = 24
    num_heads: int = 16
    intermediate_size: int = 8192
    activation_function: str = "gelu_new"
    resid_dropout: float = 0.0
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> GPTNeoConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("hidden_size", default=2048)
        heads = keys.size("num_heads", "num_attention_heads", default=16)
        layers = keys.size("num_layers", "num_hidden_layers", default=24)
        keys.divides("num_heads", heads, "hidden_size", width)
        activation = keys.word("activation_function", default="gelu_new")
        nn.activation(activation)
        _check_attention_types(config.get("attention_types"), layers, f"{where}: attention_types")
        return cls(
            vocab_size=keys.size("vocab_size", default=50257),
            max_position_embeddings=keys.size("max_position_embeddings", default=2048),
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            intermediate_size=keys.optional_size("intermediate_size") or 4 * width,
            activation_function=activation,
            resid_dropout=keys.fraction("resid_dropout", default=0.0),
            embed_dropout=keys.fraction("embed_dropout", default=0.0),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


def _check_attention_types(types: Any, layers: int, where: str) -> None:
    """`expand_attention_types_params`: [[names, times], ...] must name the type of every layer."""
    try:
        expanded = [name for names, times in types or [[["global", "local"], 12]] for name in [*names] * times]
    except (TypeError, ValueError):
        raise InputError(f"is {types!r}", where=where, hint="Write [[[names], times], ...].") from None
    if len(expanded) != layers or not set(expanded) <= {"global", "local"}:
        hint = f'Name "global" or "local" for each of the {layers} layers.'
        raise InputError(f"names {len(expanded)} layers", where=where, hint=hint)


class GPTNeoSelfAttention(nn.Module):
    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        width, places = config.hidden_size, config.max_position_embeddings
        self.bias = nn.buffer((1, 1, places, places), BOOL)
        self.attn_dropout = nn.Dropout(config.attention_dropout)
        self.resid_dropout = nn.Dropout(config.resid_dropout)
        self.num_heads = config.num_heads
        self.head_dim = width // config.num_heads
        self.k_proj = nn.Linear(width, width, dtype)
        self.v_proj = nn.Linear(width, width, dtype)
        self.q_proj = nn.Linear(width, width, dtype)
        self.out_proj = nn.Linear(width, width, dtype, bias=True)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.view(*tensor.shape[:-1], self.num_heads, self.head_dim)
        return tensor.permute(0, 2, 1, 3)

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.permute(0, 2, 1, 3).contiguous()
        return tensor.view(*tensor.shape[:-2], self.num_heads * self.head_dim)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = query.to(FLOAT32)
        key = key.to(FLOAT32)
        attn_weights = query.matmul(key.transpose(-1, -2))
        causal_mask = self.bias.narrow(2, query.shape[-2]).narrow(3, key.shape[-2])
        mask_value = ops.scalar_tensor(attn_weights.dtype)
        attn_weights = ops.where(causal_mask, attn_weights, mask_value)
        if mask is not None:
            attn_weights = attn_weights + mask
        attn_weights = ops.softmax(attn_weights)
        attn_weights = attn_weights.to(value.dtype)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = attn_weights.matmul(value)
        return attn_output, attn_weights

    def forward(self, hidden_states: Tensor, mask: Tensor | None, layer_past: Cache | None) -> tuple[Tensor, Tensor]:
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.path)
        attn_output, attn_weights = self._attn(query, key, value, mask)
        attn_output = self._merge_heads(attn_output)
        attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTNeoAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        self.attention = GPTNeoSelfAttention(config, dtype)

    def forward(self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.attention(hidden_states, mask, layer_past)  # type: ignore[no-any-return]


class GPTNeoMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.c_fc = nn.Linear(width, inner, dtype, bias=True)
        self.c_proj = nn.Linear(inner, width, dtype, bias=True)
        self.act = nn.Activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPTNeoBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, dtype)
        self.attn = GPTNeoAttention(config, dtype)
        self.ln_2 = nn.LayerNorm(config.hidden_size, dtype)
        self.mlp = GPTNeoMLP(config, dtype)

    def forward(self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, attn_weights = self.attn(hidden_states, layer_past, mask)
        hidden_states = attn_output + residual
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = residual + feed_forward_hidden_states
        return hidden_states, attn_weights


class GPTNeoModel(nn.Module):
    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size, dtype)
        self.drop = nn.Dropout(config.embed_dropout)
        self.h = nn.Stack("transformer.h", config.num_layers, lambda _: GPTNeoBlock(config, dtype))
        self.ln_f = nn.LayerNorm(config.hidden_size, dtype)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        places = self.wpe.weight.shape[0]
        check_positions("GPT-Neo", "max_position_embeddings", places, input_ids.shape[1], cache)
        inputs_embeds = self.wte(input_ids)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask, attention="eager")
        position_embeds = self.wpe(positions)
        hidden_states = inputs_embeds + position_embeds
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            outputs = block(hidden_states, cache, causal_mask)
            hidden_states = outputs[0]
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.ln_f(hidden_states)
        hidden_states = hidden_states.view(-1, input_ids.shape[1], hidden_states.shape[-1])
        return hidden_states  # type: ignore[no-any-return]


class GPTNeoForCausalLM(CausalModel):
    def __init__(self, config: GPTNeoConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_layers
        self.transformer = GPTNeoModel(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_layers, config.num_heads, config.hidden_size // config.num_heads)

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
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GPTNeoForCausalLM(GPTNeoConfig.read(config, where), dtype)
