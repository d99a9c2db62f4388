"""What a layer keeps of the tokens that it has seen, written down instead of run.

A run finds out for itself how large its cache is. These few numbers say it for any length at once, name the policy, and
serve families whose run is not modelled; a law holds them against the runs.
"""

from __future__ import annotations

from weigh.dims import product
from weigh.dtypes import DType
from weigh.records import dataclass

FULL = "full attention"
"""Keys and values of every token."""
SLIDING = "sliding window"
"""Keys and values of the latest tokens."""
CHUNKED = "chunked attention"
"""Keys and values of the tokens of one chunk, which a new chunk replaces."""
LATENT = "latent attention"
"""A compressed vector of every token, or the keys and values expanded from it."""
RECURRENT = "recurrent state"
"""A state whose size does not depend on the tokens."""
CROSS = "cross attention"
"""Keys and values of the encoder's tokens, of `window` tokens where it always reads as many."""
NOTHING = "nothing"
"""A layer without attention, or one that reads another layer's keys and values."""


@dataclass(frozen=True, slots=True)
class State:
    """A tensor of constant size that a sequence has in a layer."""

    name: str
    shape: tuple[int, ...]
    """Of one sequence."""
    dtype: DType | None = None
    """None: the model's."""

    @property
    def elements(self) -> int:
        """How many numbers."""
        found = product(self.shape)
        assert isinstance(found, int)
        return found


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps of one sequence."""

    kind: str
    """One of the kinds above; a layer with attention and a state is named by its attention."""
    heads: int = 0
    """Key-value heads."""
    key_width: int = 0
    """Of one head."""
    value_width: int = 0
    """Of one head."""
    window: int | None = None
    """Tokens that a token sees, itself included (a chunk's length, where attention is chunked)."""
    latent_width: int = 0
    """Numbers a token where the compressed vector is kept instead of keys and values (MLA: its rank and the shared
    rotary key), as transformers does from 5.23 at the latest; 0 where there is none."""
    index_width: int = 0
    """Numbers a token besides (the keys of a sparse attention's indexer)."""
    repeats: int = 1
    """How many times transformers repeats a head before it keeps it (Falcon's newer decoder); engines keep it once."""
    states: tuple[State, ...] = ()
    """What does not grow."""

    @property
    def elements_per_token(self) -> int:
        """Numbers that a token adds, keys and values expanded."""
        return self.heads * (self.key_width + self.value_width) + self.index_width

    @property
    def latent_elements_per_token(self) -> int:
        """Numbers that a token adds in an engine that keeps the compressed vector."""
        return self.latent_width + self.index_width if self.latent_width else self.elements_per_token


def full_attention(layers: int, heads: int, width: int) -> tuple[LayerCache, ...]:
    """Layers alike, each of which keeps keys and values of `heads` heads, `width` wide, of every token."""
    return (LayerCache(FULL, heads, width, width),) * layers
