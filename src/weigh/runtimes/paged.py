"""vLLM's cache: a pool of blocks that layers of every kind share.

Layers alike are one kind; each kind is cut into groups of as many layers as the rarest has, and a block of the pool
holds the tokens of one group. A state takes a whole block, whose tokens are as many as make it as large. Before
version 1 of the engine, and where the hybrid manager is off, every layer keeps every token.

Read: vLLM 0.6.4, 0.8.5 (`worker/cache_engine.py`), 0.9.2 to 0.25 (`v1/core/kv_cache_utils.py`,
`v1/kv_cache_interface.py`), 0.12 (`model_executor/models/config.py: HybridAttentionMambaModelConfig`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from weigh.errors import NotModelledError, UsageError
from weigh.models.layout import CHUNKED, CROSS, LATENT, NOTHING, SLIDING, LayerCache
from weigh.recipes.keeping import heads_of_rank, key_value_dtypes
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.dtypes import DType

BLOCK = 16
"""Tokens of a block where nobody says."""
INDEX_SCALE = 128
"""Numbers of an indexer's key, in eight bits each, that share a scale of four bytes (`DeepseekV32IndexerCache`)."""


@dataclass(frozen=True, slots=True)
class Keeps:
    """How the cache is kept."""

    dtype: DType
    """The model's."""
    kv_dtype: str = "auto"
    tensor: int = 1
    """Ranks that share the heads."""
    context: int = 1
    """Ranks of those that share a request's tokens (decode context parallelism)."""
    block: int = BLOCK
    """Tokens of a block (`--block-size`)."""
    version: tuple[int, ...] = (0, 25)
    state_dtype: DType | None = None
    """Of the recurrence's states (`--mamba-ssm-cache-dtype`); None: what the family keeps them in."""
    convolution_dtype: DType | None = None
    """Of the other states (`--mamba-cache-dtype`); None: the model's."""
    step: int = 8192
    """Tokens of a step at most, which a window keeps besides."""
    drafts: int = 0
    """Tokens that a draft proposes."""
    mtp_layers: int = 0
    """Layers of the model's own that draft."""
    hybrid: bool = True
    """Windows keep their tokens only (`--disable-hybrid-kv-cache-manager`)."""
    prefix_caching: bool = False
    """States are kept for reuse: one more of each."""


class Kind(NamedTuple):
    """What layers that keep alike keep."""

    token_bytes: int
    """Of a token, on a rank."""
    window: int | None = None
    """Tokens that a layer sees; None: all."""
    state_bytes: int = 0
    encoded: int | None = None
    """Tokens of an encoder that it reads, whatever the context."""


class Group(NamedTuple):
    """Layers that share a block."""

    kind: Kind
    layers: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The blocks that all layers share."""

    groups: tuple[Group, ...]
    block: int
    """Tokens of a block."""
    block_bytes: int
    """Of a block, in all layers of a group."""
    keeps: Keeps

    def blocks(self, budget: int) -> int:
        """Whole blocks in a budget of bytes on one rank."""
        return max(0, budget) // self.block_bytes if self.block_bytes else 0

    def pages(self, context: int) -> int:
        """Blocks of the pool that a request of so many tokens takes."""
        return sum(self._pages(group.kind, context) for group in self.groups)

    def _pages(self, kind: Kind, context: int) -> int:
        if kind.state_bytes:
            return self.keeps.drafts + (2 if self.keeps.prefix_caching and not self.keeps.drafts else 1)
        if kind.encoded is not None:
            return -(-kind.encoded // self.block)
        if kind.window is None:
            return -(-context // (self.block * self.keeps.context))
        seen = min(kind.window - 1 + self.keeps.step, context)
        return -(-seen // self.block) + 1

    def demand(self, context: int, requests: int) -> int:
        """Bytes of so many requests with so many tokens each."""
        return self.pages(context) * requests * self.block_bytes

    def tokens(self, budget: int, longest: int) -> int:
        """Tokens that there is room for, as the log has it; `longest` is what a request may have.

        >>> from weigh.dtypes import BFLOAT16
        >>> from weigh.models.layout import FULL, LayerCache
        >>> pool((LayerCache(FULL, 8, 128, 128),) * 36, Keeps(BFLOAT16)).tokens(42176578847, 40960)
        286016
        """
        if self.keeps.version < CONCURRENT and not any(group.kind.state_bytes for group in self.groups):
            return self.blocks(budget) // max(1, len(self.groups)) * self.block * self.keeps.context
        counted = sum(self._pages(group.kind, longest) for group in self.groups if group.kind.encoded is None)
        encoded = sum(-(-self.keeps.step // self.block) for group in self.groups if group.kind.encoded is not None)
        return self.blocks(budget) * longest // max(1, counted + encoded)  # encoders count as a step's tokens here


V1 = (0, 8)
"""From here on the engine's version 1 is what runs where nothing rules it out."""
HYBRID = (0, 9)
"""From here on windows keep their tokens only."""
CONCURRENT = (0, 21)
"""From here on the tokens are the longest requests that fit, times their length."""
PADDED = 5, 4
"""Groups are as large as the commonest kind where it has less than 5/4 of the rarest's layers ..."""
PADDED_LATER = 3, 2
"""... or 3/2, from 0.21 on."""


def pool(layers: Sequence[LayerCache], keeps: Keeps) -> Pool:
    """The pool of a model's layers, on one rank.

    Raises:
        NotModelledError: ranks cannot share a state.
        UsageError: there is no such format, or ranks cannot share the heads.
    """
    kinds: Counter[Kind] = Counter()
    for layer, count in Counter(layers).items():
        kinds.update(dict.fromkeys(_kinds(layer, keeps), count))
    if keeps.mtp_layers:
        full = max((k for k in kinds if not k.state_bytes and k.window is None), default=None)
        if full is not None:
            kinds[full] += keeps.mtp_layers
    if not kinds:
        return Pool((), keeps.block, 0, keeps)
    states = [kind for kind in kinds if kind.state_bytes]
    attention = [kind for kind in kinds if not kind.state_bytes]
    if keeps.context > 1 and (len(kinds) > 1 or states or attention[0].window is not None):
        what = "layers that keep unlike cannot share tokens among ranks"
        raise UsageError(what, where="decode_context_parallel_size", hint="Leave it out.")
    if not states and all(kind.window is None and kind.encoded is None for kind in attention):
        size = keeps.block * sum(kind.token_bytes * count for kind, count in kinds.items())
        return Pool((Group(attention[0], sum(kinds.values())),), keeps.block, size, keeps)
    return _shared(kinds, attention, states, keeps)


def _shared(kinds: Counter[Kind], attention: list[Kind], states: list[Kind], keeps: Keeps) -> Pool:
    """Kinds that differ in how many tokens they keep share blocks, a page of each layer of a group."""
    least, most = min(kinds.values()), max(kinds.values())
    over, under = PADDED_LATER if keeps.version >= CONCURRENT else PADDED
    size = most if most * under < least * over else least
    wide = max((kind.token_bytes for kind in attention), default=0)
    block = keeps.block
    if states and wide:
        block = -(-max(kind.state_bytes for kind in states) // (keeps.block * wide)) * keeps.block
    page = block * wide if wide else max(kind.state_bytes for kind in states)
    groups = []
    for kind, count in kinds.items():
        groups += [Group(kind, size)] * -(-count // size)
    return Pool(tuple(groups), block, page * size, keeps)


def _kinds(layer: LayerCache, keeps: Keeps) -> list[Kind]:
    """What a layer keeps: keys and values, a state, or both."""
    found = []
    if layer.states:
        found.append(Kind(0, state_bytes=_state_bytes(layer, keeps)))
    if layer.kind != NOTHING and (layer.heads or layer.latent_width):
        windowed = layer.kind in (SLIDING, CHUNKED) and keeps.hybrid and keeps.version >= HYBRID
        encoded = layer.window if layer.kind == CROSS else None
        found.append(Kind(_token_bytes(layer, keeps), layer.window if windowed else None, encoded=encoded))
    return found


PER_HEAD = {"int8_per_token_head": 8, "fp8_per_token_head": 8, "int4_per_token_head": 4}
"""Bits of a number in formats with a scale in four bytes for each token's key and value of a head."""
DS_MLA = "fp8_ds_mla"
"""512 numbers of a byte, four scales of four bytes, and 64 rotary numbers of two (`MLAAttentionSpec`)."""
DS_MLA_BYTES, DS_MLA_WIDTH = 656, 576
NEAREST = {"int8_per_token_head": "int8", "fp8_per_token_head": "fp8", "int4_per_token_head": "nvfp4", DS_MLA: "fp8"}
"""The number formats that come nearest to them."""


def _token_bytes(layer: LayerCache, keeps: Keeps) -> int:
    index = layer.index_width + 4 * -(-layer.index_width // INDEX_SCALE)
    if keeps.kv_dtype in PER_HEAD:
        if layer.kind == LATENT and layer.latent_width:
            raise UsageError("latent attention has no heads of its own", where="kv_dtype", hint="Take fp8.")
        heads, bits = heads_of_rank(layer.heads, keeps.tensor), PER_HEAD[keeps.kv_dtype]
        return heads * ((layer.key_width + layer.value_width) * bits // 8 + 2 * 4) + index
    if keeps.kv_dtype == DS_MLA:
        if layer.latent_width != DS_MLA_WIDTH:
            raise UsageError("is for latent vectors of 512 and 64 numbers", where="kv_dtype", hint="Take fp8.")
        return DS_MLA_BYTES + index
    key, value = key_value_dtypes(keeps.kv_dtype, keeps.dtype)
    if layer.kind == LATENT and layer.latent_width and key.name == "nvfp4":
        raise UsageError("latent attention has no cache in four bits", where="kv_dtype", hint="Take fp8.")
    if layer.kind == LATENT and layer.latent_width:
        return key.num_bytes(layer.latent_width) + index
    heads = heads_of_rank(layer.heads, keeps.tensor)
    return key.num_bytes(heads * layer.key_width) + value.num_bytes(heads * layer.value_width) + index


def _state_bytes(layer: LayerCache, keeps: Keeps) -> int:
    """Of one sequence: the convolution keeps its last inputs but one, and as many more as a draft may take back."""
    total = 0
    for state in layer.states:
        elements = state.elements
        if state.name == "convolution":
            width, kernel = state.shape
            elements = width * (kernel - 1 + keeps.drafts)
        if elements % keeps.tensor:
            raise NotModelledError(f"a state of {list(state.shape)} shared by {keeps.tensor} ranks", where="tensor")
        own = keeps.state_dtype if state.name == "recurrence" else keeps.convolution_dtype
        dtype = own or state.dtype or keeps.dtype
        total += dtype.num_bytes(elements) // keeps.tensor
    return total
