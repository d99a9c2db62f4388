"""Keeping keys and values: what an engine holds of the tokens that its sequences have seen.

Nothing is run. The family says what each layer keeps (`CausalModel.cache_layout`), and the engine's policy decides the
rest: whether a window is capped or room for the whole context is reserved, whether latent attention keeps its
compressed vector or the heads expanded from it, in which format, and how ranks share the heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.models.layout import CHUNKED, CROSS, LATENT, NOTHING, SLIDING, LayerCache
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.dtypes import DType

CAPPED, RESERVED = "capped", "reserved"
COMPRESSED, EXPANDED = "compressed", "expanded"


@dataclass(frozen=True, slots=True)
class Keeping:
    """How keys and values are kept."""

    context: int
    """Tokens of a sequence that are in the cache; as many as the model is made for where nobody says."""
    concurrency: int = 1
    """Sequences at once."""
    kv_dtype: str = "auto"
    """Number format of keys and values ("fp8", "q8_0"), or of each ("q8_0,f16"); "auto" is the model's own."""
    tensor: int = 1
    """Ranks that share the heads (tensor parallelism); the figures are one rank's."""
    windows: str = CAPPED
    """ "capped" keeps a window's latest tokens, "reserved" has room for the whole context in every layer."""
    latent: str = COMPRESSED
    """ "compressed" keeps latent attention's one vector a token, "expanded" every head's key and value; likewise of
    heads that transformers repeats before it keeps them."""
    encoder: int | None = None
    """Tokens that an encoder has read, for cross attention; as many as the context where nobody says."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one layer holds of one sequence, on one rank."""

    layer: LayerCache
    tokens: int
    """Tokens that are kept."""
    bytes_per_token: int
    """Bytes of one of them."""
    state_bytes: int
    """Bytes that do not depend on the tokens."""
    copies: int
    """Ranks that hold the same keys and values, because there are fewer heads than ranks."""

    @property
    def num_bytes(self) -> int:
        """All together."""
        return self.tokens * self.bytes_per_token + self.state_bytes

    @property
    def grows(self) -> bool:
        """One more token of context is one more token here."""
        return self.bytes_per_token > 0 and self.layer.kind != CROSS and self.tokens != self.layer.window


def keep(layers: Sequence[LayerCache], how: Keeping, dtype: DType) -> tuple[Kept, ...]:
    """What every layer holds of one sequence on one rank; `dtype` is the model's.

    Raises:
        UsageError: the ranks cannot share the heads, or there is no such format.
    """
    key, value = key_value_dtypes(how.kv_dtype, dtype)
    return tuple(
        Kept(layer, tokens(layer, how), _bytes_per_token(layer, how, key, value), *_shared(layer, how, dtype))
        for layer in layers
    )


def check(layers: Sequence[LayerCache], how: Keeping) -> None:
    """That the policy has something to decide.

    Raises:
        UsageError: it is about windows, latent vectors or an encoder, and the model has none.
    """
    if how.windows == RESERVED and not any(layer.kind in (SLIDING, CHUNKED) for layer in layers):
        raise _nothing_to_decide("windows", "no layer has a window: every one keeps the whole context")
    if how.latent == EXPANDED and not any(layer.latent_width or layer.repeats > 1 for layer in layers):
        raise _nothing_to_decide("latent", "no layer keeps a latent vector or shared heads")
    if how.encoder is not None and not any(layer.kind == CROSS and layer.window is None for layer in layers):
        raise _nothing_to_decide("encoder", "no layer attends to an encoder, or what it reads is always as long")


def _nothing_to_decide(setting: str, what: str) -> UsageError:
    return UsageError(what, where=setting, hint="Leave it out.")


def key_value_dtypes(spelled: str, own: DType) -> tuple[DType, DType]:
    """The formats of keys and of values.

    >>> key_value_dtypes("q8_0,f16", dtypes.BFLOAT16)
    (<DType q8_0>, <DType fp16>)

    Raises:
        UsageError: a name is unknown, or there are more than two.
    """
    names = spelled.split(",")
    if len(names) > 2:
        raise UsageError(f"{spelled!r} names more than two formats", where="kv_dtype", hint="Write KEYS,VALUES.")
    found = [own if name == "auto" else _format(name) for name in names]
    return found[0], found[-1]


def _format(name: str) -> DType:
    try:
        return dtypes.get("fp8_e4m3" if name.strip().lower() == "fp8" else name)  # both formats of 8 bits are a byte
    except UnknownNameError as error:
        raise UsageError(error.what, where="kv_dtype", hint=error.hint) from None


def tokens(layer: LayerCache, how: Keeping) -> int:
    """How many tokens a layer keeps of one sequence."""
    if layer.kind == NOTHING:
        return 0
    if layer.kind == CROSS and layer.window is not None:
        return layer.window
    if layer.kind == CROSS:
        return how.context if how.encoder is None else how.encoder
    if layer.kind in (SLIDING, CHUNKED) and how.windows == CAPPED and layer.window is not None:
        return min(how.context, layer.window)
    return how.context


def _bytes_per_token(layer: LayerCache, how: Keeping, key: DType, value: DType) -> int:
    if layer.kind == NOTHING:
        return 0
    index = key.num_bytes(layer.index_width)
    if layer.kind == LATENT and layer.latent_width and how.latent == COMPRESSED:
        return key.num_bytes(layer.latent_width) + index
    heads = heads_of_rank(layer.heads, how.tensor) * (layer.repeats if how.latent == EXPANDED else 1)
    return key.num_bytes(heads * layer.key_width) + value.num_bytes(heads * layer.value_width) + index


def heads_of_rank(heads: int, ranks: int) -> int:
    """Key-value heads of one rank: an equal share, or one where there are fewer heads than ranks.

    >>> heads_of_rank(8, 4), heads_of_rank(2, 8)
    (2, 1)

    Raises:
        UsageError: neither number divides the other.
    """
    if heads and heads % ranks and ranks % heads:
        raise UsageError(
            f"{ranks} ranks cannot share {heads} key-value heads",
            where="tensor",
            hint="Take a divisor or a multiple of the heads.",
        )
    return max(1, heads // ranks) if heads else 0


def _shared(layer: LayerCache, how: Keeping, dtype: DType) -> tuple[int, int]:
    """Bytes of a rank's part of the states, and how many ranks hold the same keys and values."""
    state = sum((s.dtype or dtype).num_bytes(_share_of_state(s.shape, how.tensor)) for s in layer.states)
    if layer.kind == NOTHING or not (layer.heads or layer.latent_width):
        return state, 1
    if layer.kind == LATENT and layer.latent_width and how.latent == COMPRESSED:
        return state, how.tensor
    return state, how.tensor * heads_of_rank(layer.heads, how.tensor) // layer.heads


def _share_of_state(shape: tuple[int, ...], ranks: int) -> int:
    """Elements of a rank's part of a state, which is split by channel or head: along its first dimension."""
    if shape[0] % ranks:
        raise NotModelledError(f"a state of {list(shape)} shared by {ranks} ranks", where="tensor")
    elements = 1
    for size in shape:
        elements *= size
    return elements // ranks
