"""llama.cpp, and ik_llama.cpp, its relative: how they keep keys, values and states. Their runs are not described yet.

Read: llama.cpp b6000 and later (`src/llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`, `llama-memory-recurrent.cpp`,
`llama-hparams.cpp`), ik_llama.cpp (`llama_kv_cache_init`). A model is known by the keys of its GGUF file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import InputError, NotModelledError
from weigh.models.layout import FULL, LATENT, NOTHING, RECURRENT, SLIDING, LayerCache, State
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PERIODS = {"gemma2": 2, "gpt-oss": 2, "gemma3": 6, "gemma4": 6}
"""Architectures whose every so manieth layer sees everything and the others a window (`set_swa_pattern`)."""
PADDING = 256
"""Cells of a window's cache are a multiple of it."""


@dataclass(frozen=True, slots=True)
class Cache:
    """How the cache is kept, in llama.cpp's words."""

    n_ctx: int
    """Cells over all sequences."""
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = True
    """One stream of cells for all sequences, instead of one each."""
    swa_full: bool = False
    """A cell for every token in window layers too."""
    type_k: str = "f16"
    type_v: str = "f16"
    mla_attn: int = 0
    """ik_llama.cpp: 0 expands latent attention, 1 keeps the latent and its transpose, 2 and 3 the latent."""

    def cells(self, layer: LayerCache) -> int:
        """Cells of one layer."""
        if layer.kind != SLIDING or self.swa_full or layer.window is None:
            return self.n_ctx
        streams = 1 if self.kv_unified else self.n_seq_max
        seen = layer.window * (self.n_seq_max if self.kv_unified else 1) + self.n_ubatch
        return streams * min(self.n_ctx // streams, -(-seen // PADDING) * PADDING)


def layout(gguf: Mapping[str, Any]) -> tuple[LayerCache, ...]:
    """What every layer keeps, from the keys of a GGUF file without their architecture's prefix.

    Raises:
        InputError: a key is missing.
        NotModelledError: a window without a known pattern of layers.
    """
    count, heads = _number(gguf, "block_count"), gguf.get("attention.head_count_kv", gguf.get("attention.head_count"))
    if heads is None:
        raise InputError("is missing", where="attention.head_count_kv", hint="Give the heads of keys and values.")
    each = list(heads) if isinstance(heads, list | tuple) else [heads] * count
    shared, every = gguf.get("attention.shared_kv_layers") or 0, gguf.get("full_attention_interval")
    found = []
    for index, number in enumerate(each):
        recurrent = (every and (index + 1) % every) or (
            not number and "ssm.state_size" in gguf and _is_state(gguf, index)
        )
        if recurrent:
            found.append(LayerCache(RECURRENT, states=_states(gguf)))
        elif not number or index >= count - shared:
            found.append(LayerCache(NOTHING))
        else:
            found.append(_attention(gguf, index, number))
    return tuple(found)


def _attention(gguf: Mapping[str, Any], index: int, heads: int) -> LayerCache:
    default = None
    if "attention.key_length" not in gguf:
        default = _number(gguf, "embedding_length") // _number(gguf, "attention.head_count")
    key, value = gguf.get("attention.key_length", default), gguf.get("attention.value_length", default)
    rank = gguf.get("attention.kv_lora_rank")
    if rank and heads > 1:
        width = rank + _number(gguf, "rope.dimension_count")
        return LayerCache(LATENT, heads, key, value, latent_width=width)
    window = gguf.get("attention.sliding_window") or None
    period = PERIODS.get(str(gguf.get("general.architecture")))
    if window is None or period is None or (index + 1) % period == 0:
        return LayerCache(FULL, heads, key, value)
    key, value = gguf.get("attention.key_length_swa", key), gguf.get("attention.value_length_swa", value)
    return LayerCache(SLIDING, heads, key, value, window)


def _is_state(gguf: Mapping[str, Any], index: int) -> bool:
    """Nemotron-H's layers are one of attention, feed-forward and state."""
    feed_forward = gguf.get("feed_forward_length")
    return "ssm.state_size" in gguf and not (feed_forward[index] if isinstance(feed_forward, list | tuple) else 0)


def _states(gguf: Mapping[str, Any]) -> tuple[State, ...]:
    """Of one sequence in one layer, in fp32 (`n_embd_r`, `n_embd_s`)."""
    inner, size = _number(gguf, "ssm.inner_size"), _number(gguf, "ssm.state_size")
    width = inner + 2 * (gguf.get("ssm.group_count") or 0) * size
    conv = State("conv", (width, _number(gguf, "ssm.conv_kernel") - 1), dtypes.FLOAT32)
    return conv, State("ssm", (inner, size), dtypes.FLOAT32)


def _number(gguf: Mapping[str, Any], key: str) -> int:
    value = gguf.get(key)
    if not isinstance(value, int):
        raise InputError("is missing", where=key, hint="Give the key as the file has it.")
    return value


def cache_bytes(layers: Sequence[LayerCache], how: Cache) -> dict[str, int]:
    """Bytes of keys and values, by what llama.cpp prints them as, and of states.

    >>> plain = (LayerCache(FULL, 8, 128, 128),) * 32
    >>> cache_bytes(plain, Cache(1024, type_k="iq4_nl"))["kv_cache_k"]
    18874368

    Raises:
        NotModelledError: a key-value format that GGML does not have.
    """
    key, value = dtypes.get(how.type_k), dtypes.get(how.type_v)
    if key.kind == "uint" or value.kind == "uint":
        raise NotModelledError(f"a cache in {how.type_k} and {how.type_v}")
    found = dict.fromkeys(("kv_cache_k", "kv_cache_v", "kv_cache_full", "kv_cache_swa"), 0)
    found |= dict.fromkeys(("recurrent_state_conv", "recurrent_state_ssm"), 0)
    for layer in layers:
        cells, k, v = how.cells(layer), layer.heads * layer.key_width, layer.heads * layer.value_width
        if layer.kind == LATENT and how.mla_attn:
            k, v = layer.latent_width, (layer.latent_width - _rotated(layer)) if how.mla_attn == 1 else 0
        keys, values = cells * key.num_bytes(k), cells * value.num_bytes(v)
        found["kv_cache_k"] += keys
        found["kv_cache_v"] += values
        found["kv_cache_swa" if layer.kind == SLIDING else "kv_cache_full"] += keys + values
        for state in layer.states:
            found[f"recurrent_state_{state.name}"] += how.n_seq_max * dtypes.FLOAT32.num_bytes(state.elements)
    found["kv_cache"] = found["kv_cache_k"] + found["kv_cache_v"]
    found["recurrent_state"] = found["recurrent_state_conv"] + found["recurrent_state_ssm"]
    return found


def _rotated(layer: LayerCache) -> int:
    """The rotary part of a latent: keys are their own part, as wide as values, and the rotary one."""
    return layer.key_width - layer.value_width
