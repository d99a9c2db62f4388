"""GPTBigCode (SantaCoder, StarCoder), as `transformers/models/gpt_bigcode/modeling_gpt_bigcode.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, K key-value heads, H head width, V vocabulary.

The triangle of booleans that the model keeps is read by nothing any more, and stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import BOOL, DType
from weigh.ghost import nn
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
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("gpt_bigcode",)


@dataclass(frozen=True, slots=True)
class GPTBigCodeConfig:
    """The settings of `GPTBigCodeConfig` that shape memory."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_pytorch_tanh"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    multi_query: bool = True
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> GPTBigCodeConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("n_embd", "hidden_size", default=768)
        heads = keys.size("n_head", "num_attention_heads", default=12)
        keys.divides("n_head", heads, "n_embd", width)
        keys.refuse("add_cross_attention", "GPTBigCode with cross-attention")
        activation = keys.word("activation_function", default="gelu_pytorch_tanh")
        nn.activation(activation)
        return cls(
            vocab_size=keys.size("vocab_size", default=50257),
            n_positions=keys.size("n_positions", "max_position_embeddings", default=1024),
            n_embd=width,
            n_layer=keys.size("n_layer", "num_hidden_layers", default=12),
            n_head=heads,
            n_inner=keys.optional_size("n_inner"),
            activation_function=activation,
            resid_pdrop=keys.fraction("resid_pdrop", default=0.1),
            embd_pdrop=keys.fraction("embd_pdrop", default=0.1),
            attn_pdrop=keys.fraction("attn_pdrop", default=0.1),
            multi_query=keys.flag("multi_query", default=True),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


class GPTBigCodeAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTBigCodeConfig, dtype: DType) -> None:
        super().__init__()
        self.multi_query = config.multi_query
        self.embed_dim = config.n_embd
        self.num_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        kv_heads = 1 if self.multi_query else self.num_heads
        self.kv_dim = kv_heads * self.head_dim
        self.num_key_value_groups = self.num_heads // kv_heads
        self.c_attn = nn.Linear(self.embed_dim, self.embed_dim + 2 * self.kv_dim, dtype, bias=True)
        self.c_proj = nn.Linear(self.embed_dim, self.embed_dim, dtype, bias=True)
        self.attn_dropout = config.attn_pdrop
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        if self.multi_query:
            parts = [self.embed_dim, self.kv_dim, self.kv_dim]
            query, key, value = self.c_attn(hidden_states).unsqueeze(1).split(parts, dim=3)
            query = query.view(batch, length, -1, self.head_dim).transpose(1, 2)
        else:
            query, key, value = (
                self.c_attn(hidden_states)
                .view(batch, length, self.num_heads, 3 * self.head_dim)
                .transpose(1, 2)
                .split(3 * [self.head_dim], dim=3)
            )
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.path)
        dropout = self.attn_dropout if self.training else 0.0
        attention = attention_interface()
        attn_output, attn_weights = attention(query, key, value, mask, dropout, self.num_key_value_groups)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.c_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTBigCodeMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPTBigCodeConfig, dtype: DType) -> None:
        super().__init__()
        inner = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, inner, dtype, bias=True)
        self.c_proj = nn.Linear(inner, config.n_embd, dtype, bias=True)
        self.act = nn.Activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPTBigCodeBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPTBigCodeConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, dtype)
        self.attn = GPTBigCodeAttention(config, dtype)
        self.ln_2 = nn.LayerNorm(config.n_embd, dtype)
        self.mlp = GPTBigCodeMLP(config, dtype)

    def forward(self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None) -> Tensor:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, _ = self.attn(hidden_states, layer_past, mask)
        hidden_states = attn_output + residual
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = residual + feed_forward_hidden_states
        return hidden_states


class GPTBigCodeModel(nn.Module):
    def __init__(self, config: GPTBigCodeConfig, dtype: DType) -> None:
        super().__init__()
        self.n_positions = config.n_positions
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, dtype)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, dtype)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: GPTBigCodeBlock(config, dtype))
        self.ln_f = nn.LayerNorm(config.n_embd, dtype)
        self.bias = nn.buffer((config.n_positions, config.n_positions), BOOL)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        check_positions("GPTBigCode", "n_positions", self.n_positions, input_ids.shape[1], cache)
        inputs_embeds = self.wte(input_ids)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        position_embeds = self.wpe(positions)
        hidden_states = inputs_embeds + position_embeds
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, cache, causal_mask)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.ln_f(hidden_states)
        hidden_states = hidden_states.view(*inputs_embeds.shape)
        return hidden_states  # type: ignore[no-any-return]


class GPTBigCodeForCausalLM(CausalModel):
    def __init__(self, config: GPTBigCodeConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layer
        self.transformer = GPTBigCodeModel(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.n_embd, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        heads = 1 if config.multi_query else config.n_head
        return layout.full_attention(config.n_layer, heads, config.n_embd // config.n_head)

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
    return GPTBigCodeForCausalLM(GPTBigCodeConfig.read(config, where), dtype)
