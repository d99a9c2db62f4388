"""What every causal language model of transformers shares: masks, attention interfaces, the loss.

Mirrors transformers 5.23: `masking_utils.py`, `integrations/sdpa_attention.py`, `loss/loss_utils.py`.
The local variables are upstream's, since each keeps its tensor alive until the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT64, DType
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor
from weigh.models.cache import Cache as Cache
from weigh.models.cache import StaticCache as StaticCache
from weigh.models.layout import LayerCache as LayerCache
from weigh.records import dataclass


@dataclass(slots=True)
class CausalOutput:
    """`CausalLMOutputWithPast`: holds its tensors until it is dropped."""

    logits: Any
    """(batch, length, vocabulary); None where a fused kernel made the loss without them."""
    loss: Tensor | None = None
    cache: Cache | None = None


class ModuleList(Module):
    """`nn.ModuleList` of parts that differ from each other: by number."""

    def __init__(self, parts: Sequence[Module]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def __getitem__(self, number: int) -> Module:
        return self.parts[number]

    def children(self) -> Iterator[tuple[str, Module]]:
        """The parts, by number."""
        for number, part in enumerate(self.parts):
            yield str(number), part


class CausalModel(Module):
    """A language model with a head (its name is that of the usual case)."""

    cache_layers: int
    """How many layers keep keys and values."""
    takes_positions = True
    """`generate` keeps the positions of the tokens for it."""
    encoder_decoder = False
    """The labels are a sequence of their own, and the decoder reads them too."""
    features: tuple[int, int] | None = None
    """Channels and frames of the sound that it reads in the place of token ids; the sequence is then the target's."""
    model_type = ""
    """As the config says."""
    unmodelled: tuple[NotModelledError, ...] = ()
    """Why it can be counted but not run."""
    unread: tuple[str, ...] = ()
    """Keys of its config that may mean something and that the family does not read (`weigh.models.unread`)."""

    @property
    def name(self) -> str:
        """Upstream's class."""
        return type(self).__name__

    @property
    def runs(self) -> bool:
        """The class says how it runs; one that does not is there to be counted."""
        return type(self).forward is not CausalModel.forward

    def cache_layout(self) -> tuple[LayerCache, ...]:
        """What every layer keeps of the tokens it has seen, in the order of the layers; empty for an encoder.

        Raises:
            NotModelledError: the family does not say.
        """
        raise NotModelledError(f"the cache of {type(self).__name__}")

    def inputs(self, batch: Size, sequence: Size, dtype: DType) -> Tensor:
        """What it reads: token ids (batch, sequence), or sound (batch, channels, frames) in `dtype`."""
        if self.features is not None:
            return ops.input_tensor((batch, *self.features), dtype)
        return ops.input_tensor((batch, sequence), INT64)

    def prepare_positions(self, positions: Tensor) -> Tensor:
        """What `generate` makes of the tokens' positions (batch, length) before it first calls the model."""
        return positions

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        """Token ids (batch, length) to logits (batch, length, vocabulary), and the loss where labels are given."""
        raise NotImplementedError


# -- masks -----------------------------------------------------------------------------------------
FULL, SLIDING = "full_attention", "sliding_attention"
"""The types of layers, as configs write them."""


def period_of(pattern: Sequence[object]) -> int:
    """How many blocks it takes until a stack's pattern begins again; the last repetition may be cut short.

    >>> period_of(["window", "window", "full", "window"])
    3
    """
    count = len(pattern)
    return next(p for p in range(1, count + 1) if all(pattern[i] == pattern[i % p] for i in range(count)))


def position_ids(length: Size, cache: Cache | None) -> Tensor:
    """The positions of the new tokens, (1, length)."""
    past: Tensor | int = 0
    if cache is not None and cache.layers:
        past = cache.offset(next(iter(cache.layers.values())).window)
    positions = ops.arange(length) + past
    return positions.unsqueeze(0)


def check_positions(family: str, key: str, positions: Size, length: Size, cache: Cache | None) -> None:
    """Raise `UsageError` where a sequence reaches beyond the positions that a model has a table of."""
    length = length + (cache.length if cache is not None else 0)
    if length > positions:
        raise UsageError(
            f"{family} has {positions} positions, the sequence reaches {length}",
            where="sequence",
            hint=f"Use a shorter one, or a config with more {key}.",
        )


def create_causal_mask(
    embeddings: Tensor,
    cache: Cache | None,
    positions: Tensor | None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    attention: str | None = None,
    cache_window: int | None = None,
) -> Tensor | None:
    """`create_causal_mask`, for a padding mask (batch, seen) of ones or none.

    None where sdpa can be told `is_causal`. `attention` is the family's own implementation, where it has no choice;
    `cache_window` is the sliding window of the cache's layers, where none of them is full.
    """
    sizes = _preprocess_mask_arguments(embeddings, cache, positions, attention_mask, cache_window)
    return _create_mask(embeddings, cache, sizes, None, allow_is_causal_skip, attention)


def create_sliding_window_causal_mask(
    embeddings: Tensor,
    cache: Cache | None,
    positions: Tensor | None,
    attention_mask: Tensor | None,
    sliding_window: int,
    cache_window: int | None,
) -> Tensor | None:
    """`create_sliding_window_causal_mask`: as above, and nobody sees further back than the window.

    `cache_window` is `sliding_window`, or None where the cache has no sliding layer.
    """
    sizes = _preprocess_mask_arguments(embeddings, cache, positions, attention_mask, cache_window)

    def inside_window(_: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ops.greater(kv_idx, q_idx - sliding_window)

    return _create_mask(embeddings, cache, sizes, sliding_window, True, None, inside_window)


def create_chunked_causal_mask(
    embeddings: Tensor,
    cache: Cache | None,
    positions: Tensor | None,
    attention_mask: Tensor | None,
    chunk_size: int,
    cache_window: int | None,
) -> Tensor | None:
    """`create_chunked_causal_mask`: nobody sees beyond the chunk, which begins where the padding ends.

    `cache_window` is `chunk_size`, or None where the cache has no chunked layer.
    """
    sizes = _preprocess_mask_arguments(embeddings, cache, positions, attention_mask, cache_window)
    if sizes.padding is not None:
        left_padding = ops.sum(ops.equal(ops.cumsum(sizes.padding), ops.zeros_as(sizes.padding)), (-1,))
    else:
        left_padding = ops.zeros((embeddings.shape[0],), INT64)

    def inside_chunk(batch_idx: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ops.equal(
            ops.floor_divide(kv_idx - ops.index_rows(left_padding, batch_idx)),
            ops.floor_divide(q_idx - ops.index_rows(left_padding, batch_idx)),
        )

    return _create_mask(embeddings, cache, sizes, chunk_size, True, None, inside_chunk)


Overlay = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a batch index, a query's and a key's position, what a mask forbids besides the future."""


@dataclass(slots=True)
class _MaskSizes:
    visible: Size
    """How many keys a query sees."""
    offset: Tensor | int
    padding: Tensor | None
    packed: tuple[Tensor, Tensor] | None = None
    """To which of several sequences a token belongs, and its position there, where that cannot be looked up: while the
    model is traced to be compiled."""


def _preprocess_mask_arguments(
    embeddings: Tensor,
    cache: Cache | None,
    positions: Tensor | None,
    attention_mask: Tensor | None,
    cache_window: int | None,
) -> _MaskSizes:
    batch, length = embeddings.shape[0], embeddings.shape[1]
    if cache is None and attention_mask is None and positions is not None and not state.traced:
        sequence = _look_for_packed_sequences(positions, batch)
        if state.recorder is not None:
            return _MaskSizes(length, 0, None, (ops.cumsum(sequence), positions.expand(batch, length)))
    if attention_mask is not None:
        attention_mask = ops.to(attention_mask, BOOL)
    if cache is None:
        return _MaskSizes(length, 0, attention_mask)
    return _MaskSizes(cache.mask_length(length, cache_window), cache.offset(cache_window), attention_mask)


def _create_mask(
    embeddings: Tensor,
    cache: Cache | None,
    sizes: _MaskSizes,
    local_size: int | None,
    allow_is_causal_skip: bool,
    attention: str | None,
    overlay: Overlay | None = None,
) -> Tensor | None:
    """`sdpa_mask` and `eager_mask`; `flash_attention_mask` is none where nothing is padded."""
    if (attention or state.attention) == "flash_attention_2":
        return None
    batch, length = embeddings.shape[0], embeddings.shape[1]
    if (attention or state.attention) != "eager":
        must_have = not allow_is_causal_skip or (cache is not None and cache.compileable and length == 1)
        if (
            not must_have
            and sizes.packed is None
            and _ignore_causal_mask_sdpa(length, sizes.visible, local_size, cache)
        ):
            return None
        mask = _boolean_mask(batch, length, sizes, overlay)
        made_by_generate = cache is not None and cache.dense_masks and allow_is_causal_skip
        return mask.contiguous() if made_by_generate else mask
    allowed = _boolean_mask(batch, length, sizes, overlay)
    dtype = embeddings.dtype
    return ops.where(allowed, ops.zeros((), dtype), ops.scalar_tensor(dtype))


def _ignore_causal_mask_sdpa(length: Size, visible: Size, local_size: int | None, cache: Cache | None) -> bool:
    if local_size is not None and visible >= local_size:
        return False
    return length == 1 or visible is length or visible == length or (cache is not None and cache.length == 0)


def create_bidirectional_mask(attention_mask: Tensor | None) -> Tensor | None:
    """`create_bidirectional_mask` of a mask of ones: looked at, and left out, whatever the attention implementation."""
    if attention_mask is not None:
        attention_mask = ops.to(attention_mask, BOOL)
        ops.any_(attention_mask)
    return None


def create_bidirectional_sliding_window_mask(embeddings: Tensor, sliding_window: int) -> Tensor | None:
    """`create_bidirectional_sliding_window_mask`: nobody sees further than the window, to either side."""
    batch, length = embeddings.shape[0], embeddings.shape[1]
    if length < sliding_window:
        return None
    batch_arange = ops.arange(batch)
    head_arange = ops.arange(1)
    q_arange, kv_arange = ops.arange(length) + 0, ops.arange(length) + 0
    q_idx, kv_idx = q_arange.view(1, 1, length, 1), kv_arange.view(1, 1, 1, length)
    allowed = ops.ones((), BOOL)
    allowed = ops.logical_and(allowed, ops.less_than(ops.absolute(q_idx - kv_idx)))
    allowed = ops.logical_and(allowed, ops.greater_than(q_idx))
    del batch_arange, head_arange
    allowed = allowed.expand(batch, 1, length, length)
    if state.attention != "eager":
        return allowed
    return ops.where(allowed, ops.zeros((), embeddings.dtype), ops.scalar_tensor(embeddings.dtype))


def _boolean_mask(batch: Size, length: Size, sizes: _MaskSizes, overlay: Overlay | None) -> Tensor:
    """Query position by key position: (batch, 1, length, visible), expanded from (1, 1, length, visible)."""
    visible, padding = sizes.visible, sizes.padding
    if padding is not None and padding.shape[-1] is not visible and padding.shape[-1] < visible:
        padding = ops.pad(padding, visible - padding.shape[-1])
    batch_arange = ops.arange(batch)
    head_arange = ops.arange(1)
    q_arange = ops.arange(length) + sizes.offset
    kv_arange = ops.arange(visible) + 0
    batch_idx = batch_arange.view(batch, 1, 1, 1)
    q_idx, kv_idx = q_arange.view(1, 1, length, 1), kv_arange.view(1, 1, 1, visible)

    def masked(q: Tensor, kv: Tensor) -> Tensor:
        def causal() -> Tensor:
            return ops.less_equal(kv, q)

        return causal() if overlay is None else _and_masks(lambda: overlay(batch_idx, q, kv), causal)

    def seen() -> Tensor:
        assert padding is not None
        return ops.clone_contiguous(padding.narrow(-1, visible)).view(batch, 1, 1, visible)

    def mask_function() -> Tensor:
        if sizes.packed is None:
            return masked(q_idx, kv_idx)
        sequence, position = sizes.packed
        rows, columns = (batch, 1, length, 1), (batch, 1, 1, length)

        def same() -> Tensor:
            return ops.equal(ops.gather(sequence, q_idx, rows), ops.gather(sequence, kv_idx, columns))

        def inside() -> Tensor:
            return masked(ops.gather(position, q_idx, rows), ops.gather(position, kv_idx, columns))

        return _and_masks(same, inside)

    allowed = mask_function() if padding is None else _and_masks(mask_function, seen)
    del head_arange
    return allowed.expand(batch, 1, length, visible)


def _and_masks(*masks: Callable[[], Tensor]) -> Tensor:
    result = ops.ones((), BOOL)
    for mask in masks:
        result = ops.logical_and(result, mask())
    return result


def _look_for_packed_sequences(positions: Tensor, batch: Size) -> Tensor:
    """`find_packed_sequence_indices`: a difference and a comparison, returned, of which a running sum is made."""
    positions = positions.expand(batch, positions.shape[1])
    first = positions.narrow(1, 1) - 1
    joined = ops.cat([first, positions], -1)
    difference = joined.narrow(1, positions.shape[1]) - joined.narrow(1, positions.shape[1])
    del joined
    changed = ops.to(difference, BOOL)
    return ops.to(changed, INT64)


# -- rotary position embedding ---------------------------------------------------------------------
class RotaryEmbedding(Module):
    """`LlamaRotaryEmbedding` and its copies: the frequencies of `width` dimensions, and a copy of them."""

    role = nn.ROTARY

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inv_freq = nn.buffer(((width + 1) // 2,), FLOAT32)
        self.original_inv_freq = nn.buffer(((width + 1) // 2,), FLOAT32)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, length, width), in the dtype of `x`."""
        return cos_sin(positions, self.inv_freq, x.dtype)


def cos_sin(positions: Tensor, inv_freq: Tensor, dtype: DType | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position and frequency (1, length, width), in `dtype`; None leaves them in fp32."""
    with no_grad():
        freqs = positions.unsqueeze(-1).float() * inv_freq
        emb = ops.cat([freqs, freqs], -1)
        cos = ops.cos(emb) * 1.0
        sin = ops.sin(emb) * 1.0
        if dtype is None:
            return cos, sin
        return cos.to(dtype), sin.to(dtype)


def rotate_half(x: Tensor) -> Tensor:
    """The second half of the width, negated, before the first."""
    width = x.shape[-1]
    half = width // 2
    x1 = x.narrow(-1, half)
    x2 = x.narrow(-1, width - half, half)
    return ops.cat([-x2, x1], -1)


Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of queries and keys; kernels may have their own."""
    fused: Rotation | None = state.overrides.get("apply_rotary_pos_emb")
    if fused is not None:
        return fused(q, k, cos, sin)
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


# -- attention -------------------------------------------------------------------------------------
def repeat_kv(hidden_states: Tensor, groups: int) -> Tensor:
    """(batch, kv heads, length, width) -> (batch, heads, length, width), a copy unless there is one group."""
    if groups == 1:
        return hidden_states
    batch, heads, length, width = hidden_states.shape
    hidden_states = hidden_states.unsqueeze(2).expand(batch, heads, groups, length, width)
    return hidden_states.reshape(batch, heads * groups, length, width)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, groups: int
) -> tuple[Tensor, Tensor]:
    """`eager_attention_forward` of Llama and most others: scores, mask, softmax in fp32, dropout, product.

    Also returns the weights, as upstream does: the caller's variable keeps them alive until the block is done.
    """
    key_states = repeat_kv(key, groups)
    value_states = repeat_kv(value, groups)
    attn_weights = query.matmul(key_states.transpose(2, 3)) * 0.125
    if mask is not None:
        attn_weights = attn_weights + mask
    attn_weights = ops.softmax(attn_weights, dtype=FLOAT32).to(query.dtype)
    attn_weights = ops.dropout(attn_weights, dropout, True)
    attn_output = attn_weights.matmul(value_states)
    attn_output = attn_output.transpose(1, 2).contiguous()
    return attn_output, attn_weights


Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""Of query, key, value, mask, dropout, groups; families that want more give it by name to their own and to sdpa's."""


def attention_interface(eager: Attention = eager_attention) -> Attention:
    """`ALL_ATTENTION_FUNCTIONS.get_interface`: the run's attention implementation, `eager` being the family's own."""
    return {"eager": eager, "sdpa": sdpa_attention, "flash_attention_2": flash_attention_forward}[state.attention]


def flash_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, _dropout: float, groups: int, **_: Any
) -> tuple[Tensor, None]:
    """`flash_attention_forward`: the package's own kernel, over grouped heads as they are, without a mask.

    Under the choice "repeat_kv" keys and values are copied for every head first, as older classes of some families do.

    Raises:
        UsageError: the model runs in a dtype that the kernel does not have.
    """
    if query.dtype is FLOAT32 and state.autocast is not None:  # `fa_peft_integration_check`
        low = state.autocast.dtype
        query, key, value = query.to(low), key.to(low), value.to(low)
    if query.dtype not in (FLOAT16, BFLOAT16):
        raise UsageError(
            f"flash_attention_2 does not run in {query.dtype.name}",
            where="attention",
            hint="Use bf16 or fp16, by the model's dtype or by autocast.",
        )
    if state.overrides.get("repeat_kv"):
        key = repeat_kv(key, groups)
        value = repeat_kv(value, groups)
    return ops.flash_attention(query, key, value, True).transpose(1, 2), None


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    groups: int,
    is_causal: bool = True,
    position_bias: Tensor | None = None,
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward`: (batch, heads, length, width) -> (batch, length, heads, width), contiguous."""
    length = query.shape[2]
    grouped = False
    if groups > 1:
        if mask is None and key.shape[-1] == value.shape[-1] and key.shape[-1] <= 256:
            grouped = True
        elif length == 1:
            query = _pack(query, groups)
            if mask is not None and mask.shape[1] != 1:
                mask = _pack(mask, groups)
        else:
            key = repeat_kv(key, groups)
            value = repeat_kv(value, groups)
    visible = key.shape[2]
    causal = is_causal and mask is None and length != 1
    if causal and visible is not length and visible > length:
        key = key.narrow(2, length)
        value = value.narrow(2, length)
        if position_bias is not None:
            position_bias = position_bias.narrow(-1, length)
    if position_bias is not None:
        mask = _position_bias_mask(position_bias, mask, causal, query, key)
        causal = False
    out = ops.scaled_dot_product_attention(query, key, value, mask, dropout, causal, grouped)
    out = out.reshape(out.shape[0], -1, length, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


def _position_bias_mask(position_bias: Tensor, mask: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    """`create_position_bias_mask`: the bias where a query may look, contiguous."""
    if mask is None and not causal:
        return position_bias.contiguous()
    if mask is None:
        q_length, kv_length = query.shape[2], key.shape[2]
        causal_mask = ops.greater_equal(ops.arange(q_length).unsqueeze(1), ops.arange(kv_length).unsqueeze(0))
        causal_mask = causal_mask.view(1, 1, q_length, kv_length)
        position_bias_mask = ops.where(causal_mask, position_bias, ops.scalar_tensor(position_bias.dtype))
    elif mask.dtype is BOOL:
        position_bias_mask = ops.where(mask, position_bias, ops.scalar_tensor(position_bias.dtype))
    else:
        position_bias_mask = position_bias + mask
    return position_bias_mask.contiguous()


def _pack(x: Tensor, groups: int) -> Tensor:
    """`pack_gqa`: one query token's heads as the length of their key head."""
    batch, heads, _, width = x.shape
    return x.reshape(batch, heads // groups, groups, width)


# -- loss ------------------------------------------------------------------------------------------
def fused_linear_loss(lm_head: Module, hidden_states: Tensor, labels: Tensor | None) -> Tensor | None:
    """The loss by a kernel that needs no logits, if the run has one; a model that asks here computes no logits then.

    Raises:
        NotModelledError: something stands in the place of the output layer.
    """
    fused: Callable[[Tensor, Tensor, Tensor], Tensor] | None = state.overrides.get(FUSED_LINEAR)
    if fused is None or labels is None:
        return None
    if not isinstance(lm_head, nn.Linear) or lm_head.bias is not None:
        raise NotModelledError("a fused linear loss with such an output layer", where="loss")
    return fused(hidden_states, lm_head.weight, labels)


FUSED_LINEAR = "linear_causal_lm_loss"


def causal_lm_loss(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """`ForCausalLMLoss`: logits upcast to fp32, labels shifted, cross entropy; or the kernels' own.

    Raises:
        NotModelledError: the run wants a fused linear loss, and the family has not asked for it.
    """
    if FUSED_LINEAR in state.overrides:
        raise NotModelledError("a fused linear loss in this family", where="loss")
    other: Callable[[Tensor, Tensor, int], Tensor] | None = state.overrides.get("causal_lm_loss")
    if other is not None:
        return other(logits, labels, vocab_size)
    logits = logits.float()
    labels = ops.pad(labels, 1)
    shift_labels = labels.narrow(-1, labels.shape[-1] - 1).contiguous()
    logits = logits.view(-1, vocab_size)
    shift_labels = shift_labels.view(-1)
    return ops.cross_entropy(logits, shift_labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """`CrossEntropyLoss()` in the logits' own dtype, every label at its place: of masked and of translated tokens."""
    return ops.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def slice_logits_to_keep(hidden_states: Tensor, keep: int) -> Tensor:
    """The hidden states of the last `keep` positions (0: all)."""
    if not keep:
        return hidden_states
    return hidden_states.narrow(1, keep)
