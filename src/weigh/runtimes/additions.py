"""What vLLM holds beside a model's own layers: room for adapters, and layers that draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import formats
from weigh.records import dataclass
from weigh.runtimes.fused import held, matrices
from weigh.runtimes.sharding import Rank

if TYPE_CHECKING:
    from weigh.runtimes.engine import Served


@dataclass(frozen=True, slots=True)
class LoraSlots:
    """Room for adapters that requests may name."""

    adapters: int
    """At once (`--max-loras`)."""
    rank: int
    """At most (`--max-lora-rank`)."""


def lora_slots(served: Served, rank: Rank, slots: LoraSlots, tokens: int) -> int:
    """Bytes of the empty adapters (`lora/layers`): A and B beside every linear layer, the embedding and the head.

    Ranks share B of what they share, but every one has the whole vocabulary's, and where they are several, where each
    of its entries lies. Steps of so many `tokens` note for each of them which adapter it wants (`punica_base.py`).
    """
    linear = (one for one in matrices(served, rank) if not one.experts and one.block is not None)
    elements = sum(one.parts * one.columns + one.rows for one in linear)
    vocabulary = int(served.text_config.get("vocab_size") or 0)
    elements += 2 * (vocabulary + served.hidden)
    noted = NOTES * tokens + (8 * vocabulary if rank.tensor > 1 else 0)
    return served.dtype.num_bytes(slots.adapters * slots.rank * elements) + noted


NOTES = 5 * 8 + 2 * 2 * 4
"""Bytes of indices for each token of a step: five of eight bytes, and two pairs of four."""


def mtp_layers(served: Served, rank: Rank, wanted: str | None) -> int:
    """Bytes of a layer of the model's own that drafts tokens: a block with attention, and one product of two states.

    It shares the embedding and the head. Checkpoints of methods that are only named leave it as it is.
    """
    kept = [index for index, layer in enumerate(served.layers) if layer.heads or layer.latent_width]
    name = f".{kept[-1]}." if kept else ""
    own = None if formats.settings(served.config) is None else wanted
    block = sum(one.num_bytes for one in held(served, rank, own) if name in one.name and one.of == "weights")
    hidden = int(served.text_config["hidden_size"])
    return block + served.dtype.num_bytes(2 * hidden * hidden)
