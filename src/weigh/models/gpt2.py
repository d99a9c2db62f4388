"""GPT-2, as `transformers/models/gpt2/modeling_gpt2.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.

Beyond upstream, for the variants that the literature builds: `qkv_bias` false leaves out the bias of the queries,
keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    attention_interface,
    causal_lm_loss,
    create_causal_mask,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import HEADER, Keys
from weigh.records import dataclass

MODEL_TYPES = ("gpt2", "gpt-sw3")


@dataclass(frozen=True, slots=True)
class GPT2Config:
    """The settings of `GPT2Config` that shape memory."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    tie_word_embeddings: bool = True
    reorder_and_upcast_attn: bool = False
    qkv_bias: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> GPT2Config:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width, heads = (
            keys.size("n_embd", "hidden_size", default=768),
            keys.size("n_head", "num_attention_heads", default=12),
        )
        keys.divides("n_head", heads, "n_embd", width)
        activation = keys.word("activation_function", default="gelu_new")
        nn.activation(activation)
        if keys.flag("add_cross_attention", default=False):
            raise NotModelledError("GPT-2 with cross-attention", where=f"{where}: add_cross_attention", hint=HEADER)
        return cls(
            vocab_size=keys.size("vocab_size", default=50257),
            n_positions=keys.size("n_positions", "n_ctx", "max_position_embeddings", default=1024),
            n_embd=width,
            n_layer=keys.size("n_layer", "num_hidden_layers", default=12),
            n_head=heads,
            n_inner=keys.optional_size("n_inner"),
            activation_function=activation,
            resid_pdrop=keys.fraction("resid_pdrop", default=0.1),
            embd_pdrop=keys.fraction("embd_pdrop", default=0.1),
            attn_pdrop=keys.fraction("attn_pdrop", default=0.1),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
            reorder_and_upcast_attn=keys.flag("reorder_and_upcast_attn", default=False),
            qkv_bias=keys.flag("qkv_bias", default=True),
        )


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, _groups: int
) -> tuple[Tensor, Tensor]:
    """GPT-2's `eager_attention_forward`: the softmax stays in the scores' dtype, the output is not made contiguous."""
    attn_weights = query.matmul(key.transpose(-1, -2)) * 0.125
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights)
    attn_weights = attn_weights.to(value.dtype)  # a statement of its own: the scores live until the cast is done
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value)
    attn_output = attn_output.transpose(1, 2)
    return attn_output, attn_weights


class GPT2Attention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.upcast = config.reorder_and_upcast_attn
        self.num_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.split_size = config.n_embd
        self.c_attn = nn.Conv1D(config.n_embd, 3 * config.n_embd, dtype, bias=config.qkv_bias)
        self.c_proj = nn.Conv1D(config.n_embd, config.n_embd, dtype)
        self.attn_pdrop = config.attn_pdrop
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        query_states, key_states, value_states = self.c_attn(hidden_states).split(self.split_size, dim=2)
        shape = (*query_states.shape[:-1], self.num_heads, self.head_dim)
        key_states = key_states.view(*shape).transpose(1, 2)
        value_states = value_states.view(*shape).transpose(1, 2)
        query_states = query_states.view(*shape).transpose(1, 2)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.attn_pdrop if self.training else 0.0
        if self.upcast and state.attention == "eager":
            raise NotModelledError("eager attention with reorder_and_upcast_attn", hint="Use sdpa, which ignores it.")
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1)
        attn_output = attn_output.reshape(*attn_output.shape[:-2], self.split_size).contiguous()
        attn_output = self.c_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPT2MLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        inner = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.c_fc = nn.Conv1D(config.n_embd, inner, dtype)
        self.c_proj = nn.Conv1D(inner, config.n_embd, dtype)
        self.act = nn.Activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPT2Block(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, dtype)
        self.attn = GPT2Attention(config, dtype)
        self.ln_2 = nn.LayerNorm(config.n_embd, dtype)
        self.mlp = GPT2MLP(config, dtype)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, _ = self.attn(hidden_states, mask, cache)
        hidden_states = attn_output + residual
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = residual + feed_forward_hidden_states
        return hidden_states


class GPT2Model(nn.Module):
    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, dtype)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, dtype)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: GPT2Block(config, dtype))
        self.ln_f = nn.LayerNorm(config.n_embd, dtype)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        length = input_ids.shape[1] + (cache.length if cache is not None else 0)
        if length > self.wpe.weight.shape[0]:
            raise UsageError(
                f"GPT-2 has {self.wpe.weight.shape[0]} learned positions, the sequence reaches {length}",
                where="sequence",
                hint="Use a shorter one, or a config with more n_positions.",
            )
        inputs_embeds = self.wte(input_ids)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        position_embeds = self.wpe(positions)
        hidden_states = inputs_embeds + position_embeds
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, causal_mask, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.ln_f(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class GPT2LMHeadModel(CausalModel):
    def __init__(self, config: GPT2Config, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layer
        self.transformer = GPT2Model(config, dtype)
        self.lm_head = nn.Head(
            self.transformer.wte if config.tie_word_embeddings else None, config.n_embd, config.vocab_size, dtype
        )

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.n_layer, config.n_head, config.n_embd // config.n_head)

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
    return GPT2LMHeadModel(GPT2Config.read(config, where), dtype)
