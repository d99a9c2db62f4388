"""What vLLM holds beside a model's own layers: room for adapters, and layers that draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import formats
from weigh.errors import UsageError
from weigh.records import dataclass
from weigh.runtimes.fused import held, matrices
from weigh.runtimes.sharding import Rank

if TYPE_CHECKING:
    from weigh.runtimes.engine import Served
    from weigh.runtimes.fused import Loaded
    from weigh.runtimes.vllm import VllmOptions


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


STACKED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Layers of which SGLang's adapters have one A each and one B for all (`lora/utils.py`)."""


def lora_pool(served: Served, rank: Rank, slots: LoraSlots, names: frozenset[str]) -> int:
    """Bytes of SGLang's pool of adapters (`lora/mem_pool.py: LoRAMemoryPool`), for the layers of those names.

    Every slot has A (rank x inputs, for each of the layers that became one) and B (outputs x rank); ranks share what
    the layer itself shares. "all" are the linear layers of blocks, the experts' left out.

    Raises:
        UsageError: there is no layer of these names.
    """
    stacked = {name: together for together in STACKED for name in together}
    wanted = {one for name in names for one in stacked.get(name, (name,))}
    linear = (one for one in matrices(served, rank) if not one.experts and one.block is not None)
    chosen = [one for one in linear if "all" in names or one.leaf in wanted]
    if not chosen:
        raise UsageError(
            f"no layer is called {' or '.join(sorted(names))}", where="lora_target_modules", hint='Or "all".'
        )
    elements = sum(one.parts * one.columns + one.rows for one in chosen)
    return served.dtype.num_bytes(slots.adapters * slots.rank * elements)


NOTES = 5 * 8 + 2 * 2 * 4
"""Bytes of indices for each token of a step: five of eight bytes, and two pairs of four."""


MOST_COPIES = 1024
"""Places that an expert may be at, of which each is noted (`MAX_EXPERT_REDUNDANCY`)."""


def balancing(served: Served, loaded: Loaded, options: VllmOptions) -> int:
    """Bytes that moving experts between ranks takes (`distributed/eplb/eplb_state.py: EplbState.add_model`).

    For each layer and expert: how often it was chosen in each of the last steps, in this one, and where its copies are;
    besides, room for one layer's experts of the rank.

    Raises:
        UsageError: the model has no experts.
    """
    counts = {one.block: one.experts for one in matrices(served, Rank()) if one.experts}
    if not counts:
        raise UsageError("has no experts", where=served.source.name, hint="Leave --enable-eplb out.")
    logical, layers = max(counts.values()), len(counts)
    physical = logical + (options.num_redundant_experts or 0)
    noted = 4 * (options.eplb_window_size + 1) * physical + 8 * (physical + logical * (MOST_COPIES + 1))
    return layers * noted + loaded.routed // layers


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
