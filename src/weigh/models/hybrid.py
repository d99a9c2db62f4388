"""Decoders whose layers are of different kinds: attention in some, a recurrence or a convolution in others.

What they share with Llama and with each other: the types of layers, the masks, and what each layer keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, ClassVar, Self

from weigh.errors import InputError, NotModelledError
from weigh.ghost import ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import FULL, SLIDING, Cache, CausalModel, LayerCache, ModuleList, create_causal_mask
from weigh.models.config import DERIVED, HEADER, Keys
from weigh.models.layout import State
from weigh.models.llama import DecoderConfig, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

LINEAR, CONV, HYBRID, HYBRID_SLIDING = "linear_attention", "conv", "hybrid", "hybrid_sliding"
"""Layers with a recurrence, with a convolution, and with both attention and one of them."""
MOE, MLP = "moe", "mlp"
"""Layers without memory."""
LEGACY_NAMES = {"mamba": LINEAR, "attention": FULL}
"""`_LEGACY_LAYER_TYPE_REMAP` (configuration_utils.py)."""


@dataclass(frozen=True)
class HybridConfig(DecoderConfig):
    """What the configs of hybrids share."""

    layer_types: tuple[str, ...] = DERIVED

    kinds: ClassVar[tuple[str, ...]] = (FULL, LINEAR)
    """The types of layers that the family has."""

    @property
    def states(self) -> tuple[State, ...]:
        """What a recurrent layer keeps of a sequence."""
        raise NotImplementedError

    def layer_cache(self, layer_idx: int) -> LayerCache:
        """What one layer keeps."""
        kind, heads, width = self.layer_types[layer_idx], self.num_key_value_heads, self.head_dim
        states = self.states if kind in (LINEAR, CONV, HYBRID, HYBRID_SLIDING) else ()
        if kind in (FULL, HYBRID):
            return LayerCache(layout.FULL, heads, width, width, states=states)
        if kind in (SLIDING, HYBRID_SLIDING):
            return LayerCache(layout.SLIDING, heads, width, width, self.sliding_window, states=states)
        return LayerCache(layout.RECURRENT if states else layout.NOTHING, states=states)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`, in which "auto" stands for what upstream works out."""
        return super().read({key: value for key, value in config.items() if value != "auto"}, where)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A known type for every layer: upstream's own pattern, if the config gives none."""
        super().settle(keys, found)
        settle_layer_types(keys, found, cls.kinds, lambda layer_idx: cls.default_type(keys, found, layer_idx))

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        """The type of a layer where the config does not say."""
        interval = keys.size("full_attention_interval", default=4)
        return LINEAR if (layer_idx + 1) % interval else FULL


def settle_layer_types(
    keys: Keys, found: dict[str, Any], kinds: tuple[str, ...], default: Callable[[int], str], key: str = "layer_types"
) -> None:
    """The types of the layers, under their present names, one for each.

    Raises:
        InputError: too few or too many.
        NotModelledError: a type that the family does not have.
    """
    count, where = found["num_hidden_layers"], f"{keys.where}: {key}"
    if found[key] is None:
        found[key] = tuple(default(layer_idx) for layer_idx in range(count))
    found[key] = tuple(LEGACY_NAMES.get(name, name) for name in found[key])
    if len(found[key]) != count:
        raise InputError(
            f"has {len(found[key])} entries", where=where, hint=f"Give one for each of the {count} layers."
        )
    for name in found[key]:
        if name not in kinds:
            raise NotModelledError(f"layers of type {name!r}", where=where, hint=HEADER)


def create_recurrent_attention_mask(inputs_embeds: Tensor, attention_mask: Tensor | None) -> None:
    """None, for nothing is padded; which it has to look at, where a mask of ones is given."""
    if attention_mask is not None and inputs_embeds.shape[1] != 1:
        ops.any_(ops.equal_to(attention_mask))


class HybridModel(LlamaModel):
    def causal_mask_mapping(
        self, inputs_embeds: Tensor, cache: Cache | None, positions: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Tensor | None]:
        """One for attention, and one of what is padded."""
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        create_recurrent_attention_mask(inputs_embeds, attention_mask)
        return {FULL: causal_mask, HYBRID: causal_mask, LINEAR: None, CONV: None}


class HybridForCausalLM(LlamaForCausalLM):
    def cache_layout(self) -> tuple[LayerCache, ...]:
        config: Any = self.config
        return tuple(config.layer_cache(layer_idx) for layer_idx in range(config.num_hidden_layers))


class CountedForCausalLM(HybridForCausalLM):
    """One whose run is not modelled."""

    forward = CausalModel.forward


class Sequential(ModuleList):
    """`nn.Sequential`."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.parts:
            x = layer(x)
        return x


def tied_to(module: Module) -> Module:
    """Another module with the same parameters, as upstream ties whole blocks."""
    twin = copy(module)
    if isinstance(twin, ModuleList):
        twin.parts = tuple(map(tied_to, twin.parts))
    else:
        twin.__dict__.update({name: tied_to(child) for name, child in module.children()})
    return twin
