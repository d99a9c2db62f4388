"""Qwen, the first, as its repositories' own `modeling_qwen.py` writes it (Qwen/Qwen-72B, December 2023).

A Llama whose attention has one projection with a bias, and whose config says the width of gate and up together. The
file takes flash-attn's attention and its Triton rotation where the package is installed ("flash_attention_2"), else
`scaled_dot_product_attention` under a mask of its own. Norms are the file's: flash-attn's fused one is an extension
that the package's wheels leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.errors import InputError, NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import Cache, CausalModel, CausalOutput, LayerCache, slice_logits_to_keep
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("qwen",)

LOGN_POSITIONS = 32767
"""Positions for which every layer keeps the factor of its queries."""


@dataclass(frozen=True)
class QWenConfig:
    """The settings of `QWenConfig` that shape memory; the defaults are `configuration_qwen.py`'s."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    no_bias: bool = True
    tie_word_embeddings: bool = False
    emb_dropout_prob: float = 0.0

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        made = keys.make(cls, keys.fields(cls))
        if made.kv_channels * made.num_attention_heads != made.hidden_size:
            hint = f"{made.num_attention_heads} heads share {made.hidden_size}."
            raise InputError(f"is {made.kv_channels}", where=f"{where}: kv_channels", hint=hint)
        return made


def _rotate_half(x: Tensor) -> Tensor:
    x = x.view(*x.shape[:-1], 2, x.shape[-1] // 2)
    x1, x2 = ops.unbind(x, -2)
    return ops.cat([-x2, x1], -1)


def apply_rotary_pos_emb(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(batch, length, heads, width), in fp32 and back."""
    t_float = t.float()
    if state.attention == "flash_attention_2":
        return ops.flash_rotary(t_float, cos, sin).to(t.dtype)
    t_rot, t_pass = t_float.narrow(-1, t_float.shape[-1]), t_float.narrow(-1, 0)
    t_rot = (t_rot * cos) + (_rotate_half(t_rot) * sin)
    return ops.cat([t_rot, t_pass], -1).to(t.dtype)


class QWenRMSNorm(nn.RMSNorm):
    def _norm(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float()).to(x.dtype)
        return output * self.weight


class QWenAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_attention_heads, config.kv_channels
        self.masked_bias = nn.buffer((), dtype)
        self.logn_tensor = nn.buffer((1, LOGN_POSITIONS, 1, 1), dtype)
        self.c_attn = nn.Linear(width, 3 * width, dtype, bias=True)
        self.c_proj = nn.Linear(width, width, dtype, bias=not config.no_bias)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        return tensor.view(*tensor.shape[:-1], self.num_heads, self.head_dim)

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        return tensor.view(*tensor.shape[:-2], self.num_heads * self.head_dim)

    def forward(self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], layer_past: Cache | None) -> Tensor:
        mixed_x_layer = self.c_attn(hidden_states)
        query, key, value = mixed_x_layer.split(mixed_x_layer.shape[-1] // 3, dim=2)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        cos, sin = rotary
        query = apply_rotary_pos_emb(query, cos, sin)
        key = apply_rotary_pos_emb(key, cos, sin)
        if layer_past is not None:
            kept = layer_past.update(key.transpose(1, 2), value.transpose(1, 2), self.path)
            key, value = (x.transpose(1, 2) for x in kept)
        if state.attention == "flash_attention_2":
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            attn_output = ops.flash_attention(q, k, v, True).transpose(1, 2)
        else:
            causal_mask = None
            if query.shape[1] == key.shape[1]:
                length = key.shape[1]
                causal_mask = ops.tril(ops.ones((length, length), BOOL)).view(1, 1, length, length)
            query = query.permute(0, 2, 1, 3)
            key = key.permute(0, 2, 1, 3)
            value = value.permute(0, 2, 1, 3)
            attn_output = ops.scaled_dot_product_attention(query, key, value, causal_mask, 0.0, False, False)
            attn_output = attn_output.transpose(1, 2)
        context_layer = self._merge_heads(attn_output)
        output: Tensor = self.c_proj(context_layer)
        return output


class QWenMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(width, inner, dtype, bias)
        self.w2 = nn.Linear(width, inner, dtype, bias)
        self.c_proj = nn.Linear(inner, width, dtype, bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        a1 = self.w1(hidden_states)
        a2 = self.w2(hidden_states)
        intermediate_parallel = a1 * ops.silu(a2)
        output: Tensor = self.c_proj(intermediate_parallel)
        return output


class QWenBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = QWenRMSNorm(config.hidden_size, dtype)
        self.attn = QWenAttention(config, dtype)
        self.ln_2 = QWenRMSNorm(config.hidden_size, dtype)
        self.mlp = QWenMLP(config, dtype)

    def forward(self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], layer_past: Cache | None) -> Tensor:
        layernorm_output = self.ln_1(hidden_states)
        attn_output = self.attn(layernorm_output, rotary, layer_past)
        residual = hidden_states
        layernorm_input = attn_output + residual
        layernorm_output = self.ln_2(layernorm_input)
        residual = layernorm_input
        mlp_output = self.mlp(layernorm_output)
        hidden_states = residual + mlp_output
        return hidden_states


class QWenRotaryEmbedding(nn.Module):
    """Keeps the cosines and sines of twice the longest sequence that it has seen."""

    role = nn.ROTARY

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.inv_freq = nn.buffer((config.kv_channels // 2,), FLOAT32)
        self.kept: list[Tensor] = []

    def _update(self, length: Any) -> None:
        exponents = ops.arange(self.inv_freq.shape[0]).float() / 2.0
        self.inv_freq = ops.reciprocal(exponents * 2.0) * 1.0
        seq = ops.arange(2 * length)
        freqs = ops.mul(seq.to(FLOAT32).unsqueeze(-1), self.inv_freq)
        emb = ops.cat([freqs, freqs], -1)
        emb = emb.view(1, emb.shape[0], 1, emb.shape[1])
        self.kept = [ops.cos(emb), ops.sin(emb)]

    def forward(self, length: Any) -> tuple[Tensor, Tensor]:
        """(1, length, 1, width) each."""
        if not self.kept or length > self.kept[0].shape[1] // 2:
            self._update(length)
        cos, sin = self.kept
        return cos.narrow(1, length), sin.narrow(1, length)


class QWenModel(nn.Module):
    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.rotary_emb = QWenRotaryEmbedding(config)
        self.h = nn.Stack("transformer.h", config.num_hidden_layers, lambda _: QWenBlock(config, dtype))
        self.ln_f = QWenRMSNorm(config.hidden_size, dtype)

    def forward(self, input_ids: Tensor, cache: Cache | None) -> Tensor:
        inputs_embeds = self.wte(input_ids)
        hidden_states = inputs_embeds
        length = hidden_states.shape[1]
        cos, sin = self.rotary_emb(length + (cache.length if cache is not None else 0))
        rotary = cos.narrow(1, length), sin.narrow(1, length)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, rotary, cache)
        if cache is not None:
            cache.advance(length)
        normed: Tensor = self.ln_f(hidden_states)
        return normed.view(*hidden_states.shape)


class QWenLMHeadModel(CausalModel):
    takes_positions = False

    def __init__(self, config: QWenConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.transformer = QWenModel(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_hidden_layers, config.num_attention_heads, config.kv_channels)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        if attention_mask is not None:
            raise NotModelledError("Qwen with a padding mask", where="attention_mask")
        hidden_states = self.transformer(input_ids, cache)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        lm_logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            shift_logits = lm_logits.narrow(1, lm_logits.shape[1] - 1).contiguous()
            shift_labels = labels.narrow(1, labels.shape[1] - 1).contiguous()
            loss = ops.cross_entropy(shift_logits.view(-1, shift_logits.shape[-1]), shift_labels.view(-1))
        return CausalOutput(lm_logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return QWenLMHeadModel(QWenConfig.read(config, where), dtype)
