"""LN tuning: copies of the norms are trained in their places, in their dtype (peft 0.21, peft/tuners/ln_tuning)."""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar

from weigh.errors import NotModelledError
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.records import dataclass
from weigh.techniques.adapters.base import LayerAdapter
from weigh.trace.events import WEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class LnTuning(LayerAdapter):
    """A trained copy of each of the norms that are named; the frozen ones stay."""

    kind: ClassVar[str] = "ln_tuning"
    takes: ClassVar[tuple[type[Module], ...]] = (Module,)

    targets: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "norm")

    def adapter(self, layer: Any, shared: Any) -> Module:
        """A copy of the norm, and the norm."""
        return TunedNorm(layer)


class TunedNorm(Module):
    """`LNTuningLayer`."""

    def __init__(self, base_layer: Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.ln_tuning_layers = tuned = copy(base_layer)
        for name, tensor in list(tuned.own_tensors()):
            if tensor.storage.purpose != WEIGHT:
                raise NotModelledError(f"a copy of {base_layer.path}, which has buffers", where="adapter")
            setattr(tuned, name, nn.parameter(tensor.shape, tensor.dtype))

    def forward(self, *args: Any) -> Any:
        return self.ln_tuning_layers(*args)
