"""Which layers have experts, and which a plain MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weigh.errors import InputError
from weigh.models.config import Keys
from weigh.models.llama import DecoderConfig
from weigh.records import dataclass

DENSE, SPARSE = "dense", "sparse"
"""The types of MLPs, as configs write them."""


@dataclass(frozen=True)
class MoeConfig(DecoderConfig):
    """What the configs of decoders with experts share."""

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """What each layer has: experts, if the config does not say more."""
        return (SPARSE,) * self.num_hidden_layers

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Windows, and experts."""
        return list(zip(self.layer_types, self.mlp_layer_types, strict=True))

    @property
    def leading_layers(self) -> int:
        """The dense ones in front."""
        types = self.mlp_layer_types
        return types.index(SPARSE) if SPARSE in types else 0

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No losses of the routers."""
        super().settle(keys, found)
        keys.cannot_run("output_router_logits", "the routers' own loss")
        types = found.get("mlp_layer_types")
        if types is not None:
            _check(types, found["num_hidden_layers"], f"{keys.where}: mlp_layer_types")


def first_dense(count: int, dense: int) -> tuple[str, ...]:
    """The types of `count` layers, of which the first `dense` have no experts."""
    return tuple(DENSE if i < dense else SPARSE for i in range(count))


def check_groups(keys: Keys, found: Mapping[str, Any], experts: str = "n_routed_experts") -> None:
    """Raise `InputError` where the experts cannot be divided into groups."""
    if found["n_group"] is not None:
        keys.divides("n_group", found["n_group"], experts, found[experts])


def _check(types: Sequence[str], count: int, where: str) -> None:
    if len(types) != count:
        raise InputError(f"has {len(types)} entries", where=where, hint=f"Give one for each of the {count} layers.")
    for name in types:
        if name not in (DENSE, SPARSE):
            raise InputError(f"has {name!r}", where=where, hint=f"Write {DENSE!r} or {SPARSE!r}.")
