"""GPT-J, as `transformers/models/gptj/modeling_gptj.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, R rotated width, V vocabulary.

It has one attention besides FlashAttention's, its own, called eager; upstream refuses sdpa.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
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

MODEL_TYPES = ("gptj",)


@dataclass(frozen=True, slots=True)
class GPTJConfig:
    """The settings of `GPTJConfig` (and of `CodeGenConfig`, which has the same) that shape memory."""

    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> GPTJConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("n_embd", "hidden_size", default=4096)
        heads = keys.size("n_head", "num_attention_heads", default=16)
        head_dim = keys.divides("n_head", heads, "n_embd", width)
        rotary_dim = keys.size("rotary_dim", default=64)
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise InputError(
                f"is {rotary_dim}, for heads that are {head_dim} wide",
                where=f"{where}: rotary_dim",
                hint="It must be even, and at most the width of a head.",
            )
        activation = keys.word("activation_function", default="gelu_new")
        nn.activation(activation)
        return cls(
            vocab_size=keys.size("vocab_size", default=50400),
            n_positions=keys.size("n_positions", "max_position_embeddings", default=2048),
            n_embd=width,
            n_layer=keys.size("n_layer", "num_hidden_layers", default=28),
            n_head=heads,
            rotary_dim=rotary_dim,
            n_inner=keys.optional_size("n_inner"),
            activation_function=activation,
            resid_pdrop=keys.fraction("resid_pdrop", default=0.0),
            embd_pdrop=keys.fraction("embd_pdrop", default=0.0),
            attn_pdrop=keys.fraction("attn_pdrop", default=0.0),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
        )


def rotate_every_two(x: Tensor) -> Tensor:
    """Each pair of neighbours swapped, the first of them negated."""
    x1 = ops.every_other(x)
    x2 = ops.every_other(x)
    x = ops.stack_last([-x2, x1])
    return x.reshape(*x.shape[:-2], -1)


def _twice(x: Tensor) -> Tensor:
    """`torch.repeat_interleave(x[:, :, None, :], 2, 3)`: an expanded view, copied."""
    x = x.unsqueeze(2).unsqueeze(4)
    return ops.clone_contiguous(x.expand(*x.shape[:-1], 2)).view(*x.shape[:-2], -1)


def apply_rotary_pos_emb(tensor: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotary position embedding of neighbouring dimensions, (B, T, N, R)."""
    sin = _twice(sin)
    cos = _twice(cos)
    return (tensor * cos) + (rotate_every_two(tensor) * sin)


def rotated_and_rest(x: Tensor, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """The dimensions that are rotated, and those that are not: slices."""
    rest = x.shape[-1] - rotary_dim
    return x.narrow(-1, rotary_dim) if rest else x, x.narrow(-1, rest, rotary_dim)


class GPTJAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        width = config.n_embd
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.num_attention_heads = config.n_head
        self.head_dim = width // config.n_head
        self.k_proj = nn.Linear(width, width, dtype)
        self.v_proj = nn.Linear(width, width, dtype)
        self.q_proj = nn.Linear(width, width, dtype)
        self.out_proj = nn.Linear(width, width, dtype)
        self.rotary_dim = config.rotary_dim
        self.embed_positions = nn.buffer((config.n_positions, config.rotary_dim), FLOAT32)

    def _split_heads(self, tensor: Tensor, rotary: bool) -> Tensor:
        tensor = tensor.view(*tensor.shape[:-1], self.num_attention_heads, self.head_dim)
        return tensor if rotary else tensor.permute(0, 2, 1, 3)

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.permute(0, 2, 1, 3).contiguous()
        return tensor.view(*tensor.shape[:-2], self.num_attention_heads * self.head_dim)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = query.to(FLOAT32)
        key = key.to(FLOAT32)
        attn_weights = query.matmul(key.transpose(-1, -2))
        attn_weights = attn_weights / 8.0
        if mask is not None:
            attn_weights = attn_weights + mask
        attn_weights = ops.softmax(attn_weights)
        attn_weights = attn_weights.to(value.dtype)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = attn_weights.matmul(value)
        return attn_output, attn_weights

    def forward(
        self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        query = self._split_heads(query, True)
        key = self._split_heads(key, True)
        value = self._split_heads(value, False)
        embed_positions = ops.repeat(self.embed_positions, positions.shape[0], 1, 1)
        repeated_position_ids = ops.repeat(positions.unsqueeze(-1), 1, 1, embed_positions.shape[-1])
        sincos = ops.gather(embed_positions, repeated_position_ids, repeated_position_ids.shape).to(key.dtype)
        sin, cos = sincos.split(self.rotary_dim // 2, dim=-1)
        k_rot, k_pass = rotated_and_rest(key, self.rotary_dim)
        q_rot, q_pass = rotated_and_rest(query, self.rotary_dim)
        k_rot = apply_rotary_pos_emb(k_rot, sin, cos)
        q_rot = apply_rotary_pos_emb(q_rot, sin, cos)
        key = ops.cat([k_rot, k_pass], -1)
        query = ops.cat([q_rot, q_pass], -1)
        key = key.permute(0, 2, 1, 3)
        query = query.permute(0, 2, 1, 3)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.path)
        attn_output, attn_weights = self._attn(query, key, value, mask)
        attn_output = self._merge_heads(attn_output)
        attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTJMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        inner = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.fc_in = nn.Linear(config.n_embd, inner, dtype, bias=True)
        self.fc_out = nn.Linear(inner, config.n_embd, dtype, bias=True)
        self.act = nn.Activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc_in(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.fc_out(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPTJBlock(nn.Module):
    role = nn.BLOCK
    attention: type[nn.Module] = GPTJAttention

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, dtype)
        self.attn = self.attention(config, dtype)  # type: ignore[call-arg]
        self.mlp = GPTJMLP(config, dtype)

    def forward(
        self, hidden_states: Tensor, layer_past: Cache | None, mask: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_outputs, attn_weights = self.attn(hidden_states, layer_past, mask, positions)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = attn_outputs + feed_forward_hidden_states + residual
        return hidden_states, attn_weights


class GPTJModel(nn.Module):
    block: type[nn.Module] = GPTJBlock

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        self.n_positions = config.n_positions
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, dtype)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.Stack("transformer.h", config.n_layer, lambda _: self.block(config, dtype))  # type: ignore[call-arg]
        self.ln_f = nn.LayerNorm(config.n_embd, dtype)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        check_positions("the model", "n_positions", self.n_positions, input_ids.shape[1], cache)
        inputs_embeds = self.wte(input_ids)
        seq_length = inputs_embeds.shape[1]
        if positions is None:
            positions = position_ids(seq_length, cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask, attention="eager")
        hidden_states = inputs_embeds
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            outputs = block(hidden_states, cache, causal_mask, positions)
            hidden_states = outputs[0]
        if cache is not None:
            cache.advance(seq_length)
        hidden_states = self.ln_f(hidden_states)
        hidden_states = hidden_states.view(-1, seq_length, hidden_states.shape[-1])
        return hidden_states  # type: ignore[no-any-return]


class GPTJForCausalLM(CausalModel):
    transformer_class: type[GPTJModel] = GPTJModel

    def __init__(self, config: GPTJConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layer
        self.transformer = self.transformer_class(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.n_embd, config.vocab_size, dtype, bias=True)

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
    return GPTJForCausalLM(GPTJConfig.read(config, where), dtype)
