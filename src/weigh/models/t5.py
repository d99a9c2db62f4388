"""T5 (and T5 v1.1, FLAN-T5), as `transformers/models/t5/modeling_t5.py` (5.23) writes it.

Shapes: B batch, T length of the source, S length of the target, D model width, N heads, H head width, V vocabulary.

Labels are the target; the decoder reads them shifted by one. Every parameter is in the dtype that is asked for, as
`model.to(dtype)` leaves it: `from_pretrained` in fp16 would keep `wo` in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, INT64, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    LayerCache,
    ModuleList,
    attention_interface,
    create_bidirectional_mask,
    create_causal_mask,
)
from weigh.models.config import DERIVED, FamilyConfig, Keys, Probability, architecture
from weigh.models.parts import Counted
from weigh.models.seq2seq import EncoderDecoderModel, SharedEmbedding
from weigh.records import dataclass


@dataclass(frozen=True)
class T5Config(FamilyConfig):
    """The settings of `T5Config` that shape memory. Upstream ties the embeddings, whatever the config says."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = DERIVED
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    dropout_rate: Probability = 0.1
    feed_forward_proj: str = "relu"
    dense_act_fn: str = DERIVED
    is_gated_act: bool = DERIVED
    scale_decoder_outputs: bool = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }
    scale: ClassVar[bool | None] = None
    """Whether the decoder's output is scaled; None: unless the config says that nothing is tied."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        projection = found["feed_forward_proj"]
        kind, _, function = projection.rpartition("-")
        if kind not in ("", "gated"):
            raise InputError(
                f"is {projection!r}", where=f"{keys.where}: feed_forward_proj", hint="Write FUNCTION or gated-FUNCTION."
            )
        found["num_decoder_layers"] = found["num_decoder_layers"] or found["num_layers"]
        if found["dense_act_fn"] is None:
            found["dense_act_fn"] = "gelu_new" if projection == "gated-gelu" else function
        nn.activation(found["dense_act_fn"])
        if found["is_gated_act"] is None:
            found["is_gated_act"] = kind == "gated"
        if cls.scale is not None:
            found["scale_decoder_outputs"] = cls.scale
        elif found["scale_decoder_outputs"] is None:
            found["scale_decoder_outputs"] = keys.flag("tie_word_embeddings", default=True)


class T5LayerNorm(nn.Module):
    role = nn.NORM

    def __init__(self, hidden_size: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((hidden_size,), dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(FLOAT32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        if self.weight.dtype in (FLOAT16, BFLOAT16):
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class T5DenseActDense(nn.Module):
    role = nn.MLP

    def __init__(self, config: T5Config, dtype: DType) -> None:
        super().__init__()
        self.wi = nn.Linear(config.d_model, config.d_ff, dtype)
        self.wo = nn.Linear(config.d_ff, config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = nn.Activation(config.dense_act_fn)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.wi(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = hidden_states.to(self.wo.weight.dtype)
        hidden_states = self.wo(hidden_states)
        return hidden_states


class T5DenseGatedActDense(nn.Module):
    role = nn.MLP

    def __init__(self, config: T5Config, dtype: DType) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, dtype)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, dtype)
        self.wo = nn.Linear(config.d_ff, config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = nn.Activation(config.dense_act_fn)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_gelu = self.act(self.wi_0(hidden_states))
        hidden_linear = self.wi_1(hidden_states)
        hidden_states = hidden_gelu * hidden_linear
        hidden_states = self.dropout(hidden_states)
        hidden_states = hidden_states.to(self.wo.weight.dtype)
        hidden_states = self.wo(hidden_states)
        return hidden_states


class T5LayerFF(nn.Module):
    def __init__(self, config: T5Config, dtype: DType) -> None:
        super().__init__()
        dense = T5DenseGatedActDense if config.is_gated_act else T5DenseActDense
        self.DenseReluDense: nn.Module = dense(config, dtype)
        self.layer_norm = T5LayerNorm(config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden_states: Tensor) -> Tensor:
        forwarded_states = self.layer_norm(hidden_states)
        forwarded_states = self.DenseReluDense(forwarded_states)
        hidden_states = hidden_states + self.dropout(forwarded_states)
        return hidden_states


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    _groups: int,
    is_causal: bool,  # noqa: ARG001  the mask says it
    position_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """T5's `eager_attention_forward`: the position bias, then the mask; the softmax stays in the scores' dtype."""
    attn_weights = query.matmul(key.transpose(2, 3)) * 1.0
    if position_bias is not None:
        attn_weights = attn_weights + position_bias
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights)
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value)
    attn_output = attn_output.transpose(1, 2).contiguous()
    return attn_output, attn_weights


class T5Attention(nn.Module):
    role = nn.ATTENTION
    bias_wants_gradient: ClassVar[bool] = True
    """Zeros that stand for a bias want a gradient where blocks are checkpointed."""

    def __init__(
        self, config: T5Config, is_decoder: bool, has_relative_attention_bias: bool, is_causal: bool, dtype: DType
    ) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        self.is_causal = is_causal
        self.has_relative_attention_bias = has_relative_attention_bias
        self.gradient_checkpointing = False
        self.key_value_proj_dim = config.d_kv
        self.n_heads = config.num_heads
        self.dropout = config.dropout_rate
        inner_dim = self.n_heads * self.key_value_proj_dim
        self.q = nn.Linear(config.d_model, inner_dim, dtype)
        self.k = nn.Linear(config.d_model, inner_dim, dtype)
        self.v = nn.Linear(config.d_model, inner_dim, dtype)
        self.o = nn.Linear(inner_dim, config.d_model, dtype)
        if has_relative_attention_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, self.n_heads, dtype)

    def _relative_position_bucket(self, relative_position: Tensor) -> Tensor:
        """The bucket that every distance falls into: small ones one by one, large ones by their logarithm."""
        relative_buckets: Tensor | None = None
        if not self.is_decoder:
            relative_buckets = ops.to(ops.greater_than(relative_position), INT64) * 16 + 0
            relative_position = ops.absolute(relative_position)
        else:
            relative_position = -ops.minimum(relative_position, ops.zeros_as(relative_position))
        is_small = ops.less_than(relative_position)
        relative_position_if_large = (ops.log(relative_position.float() / 8) / 2.77 * 8).to(INT64) + 8
        relative_position_if_large = ops.minimum(relative_position_if_large, ops.full_like(relative_position_if_large))
        buckets = ops.where(is_small, relative_position, relative_position_if_large)
        # `relative_buckets += buckets`: in place where the direction has been counted, a new tensor where it was zero
        return ops.add_(relative_buckets, buckets) if relative_buckets is not None else buckets + 0

    def compute_bias(self, query_length: Size, key_length: Size, past_seen_tokens: Tensor | int) -> Tensor:
        """Compute binned relative position bias, (1, N, T, T)."""
        context_position = ops.arange(query_length).unsqueeze(1) + past_seen_tokens
        memory_position = ops.arange(key_length).unsqueeze(0)
        relative_position = memory_position - context_position
        relative_position_bucket = self._relative_position_bucket(relative_position)
        values: Tensor = self.relative_attention_bias(relative_position_bucket)
        values = values.permute(2, 0, 1).unsqueeze(0)
        return values

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        key_value_states: Tensor | None,
        position_bias: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        width = self.key_value_proj_dim
        past_seen_tokens = cache.offset(None) if cache is not None else 0
        past_seen_tokens = ops.clone(past_seen_tokens) if isinstance(past_seen_tokens, Tensor) else past_seen_tokens
        query_states = self.q(hidden_states).view(batch, length, -1, width).transpose(1, 2)
        current_states = key_value_states if key_value_states is not None else hidden_states
        crossed = cache.crossed(self.path) if cache is not None and key_value_states is not None else None
        if crossed is not None:
            key_states, value_states = crossed
        else:
            key_states = self.k(current_states).view(*current_states.shape[:-1], -1, width).transpose(1, 2)
            value_states = self.v(current_states).view(*current_states.shape[:-1], -1, width).transpose(1, 2)
            if cache is not None and key_value_states is not None:
                key_states, value_states = cache.cross(key_states, value_states, self.path)
            elif cache is not None:
                key_states, value_states = cache.update(key_states, value_states, self.path)
        if position_bias is None:
            key_length = key_states.shape[-2]
            if not self.has_relative_attention_bias:
                position_bias = ops.zeros((1, self.n_heads, length, key_length), query_states.dtype)
                position_bias.requires_grad = self.bias_wants_gradient and self.gradient_checkpointing and self.training
            else:
                position_bias = self.compute_bias(length, key_length, past_seen_tokens)
        dropout = self.dropout if self.training else 0.0
        attention = attention_interface(eager_attention)
        attn_output, attn_weights = attention(
            query_states,
            key_states,
            value_states,
            mask,
            dropout,
            1,
            is_causal=self.is_causal,
            position_bias=position_bias,
        )
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.o(attn_output)
        return attn_output, position_bias, attn_weights


class T5LayerSelfAttention(nn.Module):
    def __init__(self, config: T5Config, is_decoder: bool, has_relative_attention_bias: bool, dtype: DType) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, is_decoder, has_relative_attention_bias, is_decoder, dtype)
        self.layer_norm = T5LayerNorm(config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, position_bias: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        normed_hidden_states = self.layer_norm(hidden_states)
        attention_output, position_bias, attn_weights = self.SelfAttention(
            normed_hidden_states, mask, None, position_bias, cache
        )
        attention_output = hidden_states + self.dropout(attention_output)
        return attention_output, position_bias, attn_weights


class T5LayerCrossAttention(nn.Module):
    def __init__(self, config: T5Config, dtype: DType) -> None:
        super().__init__()
        self.EncDecAttention = T5Attention(config, True, False, False, dtype)
        self.layer_norm = T5LayerNorm(config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor,
        mask: Tensor | None,
        position_bias: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        normed_hidden_states = self.layer_norm(hidden_states)
        attention_output, position_bias, attn_weights = self.EncDecAttention(
            normed_hidden_states, mask, key_value_states, position_bias, cache
        )
        layer_output = hidden_states + self.dropout(attention_output)
        return layer_output, position_bias, attn_weights


class T5Block(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: T5Config, is_decoder: bool, has_relative_attention_bias: bool, dtype: DType) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        parts: list[nn.Module] = [T5LayerSelfAttention(config, is_decoder, has_relative_attention_bias, dtype)]
        if is_decoder:
            parts.append(T5LayerCrossAttention(config, dtype))
        parts.append(T5LayerFF(config, dtype))
        self.layer = ModuleList(parts)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        position_bias: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        encoder_decoder_position_bias: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden_states, self_attn_position_bias, _ = self.layer[0](hidden_states, mask, position_bias, cache)
        clamp_value = None
        if hidden_states.dtype is FLOAT16:
            hidden_states, clamp_value = clamp_infinities(hidden_states)
        cross_attn_position_bias = None
        if self.is_decoder and encoder_hidden_states is not None:
            hidden_states, cross_attn_position_bias, _ = self.layer[1](
                hidden_states, encoder_hidden_states, encoder_attention_mask, encoder_decoder_position_bias, cache
            )
            if hidden_states.dtype is FLOAT16:
                hidden_states, clamp_value = clamp_infinities(hidden_states)
        hidden_states = self.layer[-1](hidden_states)
        if hidden_states.dtype is FLOAT16:
            hidden_states, clamp_value = clamp_infinities(hidden_states)  # noqa: RUF059  upstream's variable
        return hidden_states, self_attn_position_bias, cross_attn_position_bias


def clamp_infinities(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """fp16 within its largest number, or somewhat less where there are infinities; and that number."""
    found = ops.any_(ops.isinf(hidden_states))
    clamp_value = ops.where(found, ops.scalar_tensor(FLOAT32), ops.scalar_tensor(FLOAT32))
    del found
    return ops.clamp_between(hidden_states, -clamp_value, clamp_value), clamp_value


class T5Stack(nn.Module):
    block_class: ClassVar[type[T5Block]] = T5Block
    lead: ClassVar[int] = 1
    """The first block makes the bias that the others share."""

    def __init__(self, config: T5Config, path: str, is_decoder: bool, shared: nn.Embedding, dtype: DType) -> None:
        super().__init__()
        self.embed_tokens = SharedEmbedding(shared)
        self.is_decoder = is_decoder
        layers = config.num_decoder_layers if is_decoder else config.num_layers
        self.block = nn.Stack(
            f"{path}.block",
            layers,
            lambda i: self.block_class(config, is_decoder, i == 0, dtype),
            lead=min(self.lead, layers - 1),
            tail=int(is_decoder or self.lead > 0),
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def masks(
        self, inputs_embeds: Tensor, cache: Cache | None, attention_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The masks of self-attention and of cross-attention."""
        if not self.is_decoder:
            return create_bidirectional_mask(attention_mask), None
        own = create_causal_mask(inputs_embeds, cache, None)
        return own, create_bidirectional_mask(cache.encoder_mask if cache is not None else None)

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        attention_mask, encoder_extended_attention_mask = self.masks(inputs_embeds, cache, attention_mask)
        position_bias = None
        encoder_decoder_position_bias = None
        hidden_states = self.dropout(inputs_embeds)
        for layer_module in self.block:
            hidden_states, self_attention_position_bias, cross_attention_position_bias = layer_module(
                hidden_states,
                attention_mask,
                position_bias,
                encoder_hidden_states,
                encoder_extended_attention_mask,
                encoder_decoder_position_bias,
                cache,
            )
            position_bias = self_attention_position_bias
            if self.is_decoder and encoder_hidden_states is not None:
                encoder_decoder_position_bias = cross_attention_position_bias
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class T5ForConditionalGeneration(EncoderDecoderModel):
    stack_class: ClassVar[type[T5Stack]] = T5Stack
    shifts_first = False

    def __init__(self, config: T5Config, dtype: DType, name: str) -> None:
        super().__init__()
        self.config, self._name = config, name
        self.cache_layers = config.num_decoder_layers
        self.shared = nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.encoder = self.stack_class(config, "encoder", False, self.shared, dtype)
        self.decoder = self.stack_class(config, "decoder", True, self.shared, dtype)
        self.lm_head = nn.Head(self.shared, config.d_model, config.vocab_size, dtype)

    @property
    def name(self) -> str:
        return self._name

    def cache_layout(self) -> tuple[LayerCache, ...]:
        heads, width = self.config.num_heads, self.config.d_kv
        own, cross = (LayerCache(kind, heads, width, width) for kind in (layout.FULL, layout.CROSS))
        return (own,) * self.cache_layers + (cross,) * self.cache_layers

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, attention_mask=attention_mask)  # type: ignore[no-any-return]

    def decode(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, cache: Cache | None) -> Tensor:
        return self.decoder(decoder_input_ids, encoder_hidden_states, cache)  # type: ignore[no-any-return]

    def scale(self, decoder_output: Tensor) -> Tensor:
        return decoder_output * 0.125 if self.config.scale_decoder_outputs else decoder_output

    def logits(self, sequence_output: Tensor) -> Tensor:
        return self.lm_head(sequence_output)  # type: ignore[no-any-return]


def build_as(
    settings: type[T5Config],
    model: type[T5ForConditionalGeneration],
    config: Mapping[str, Any],
    dtype: DType,
    where: str,
    prefix: str,
) -> CausalModel:
    """The model of a relative, or its encoder alone, which is counted."""
    full = f"{prefix}ForConditionalGeneration"
    name = architecture(config, (full, f"{prefix}WithLMHeadModel", f"{prefix}EncoderModel"), where)
    read = settings.read(config, where)
    if name == f"{prefix}EncoderModel":
        shared = nn.Embedding(read.vocab_size, read.d_model, dtype)
        return Counted(name, shared=shared, encoder=model.stack_class(read, "encoder", False, shared, dtype))
    return model(read, dtype, full)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(T5Config, T5ForConditionalGeneration, config, dtype, where, "T5")
