"""BEFT: a bias beside a linear layer that has none, as peft (0.21) runs it (peft/tuners/beft/layer.py)."""

from __future__ import annotations

from typing import Any, ClassVar

from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Beft(LayerAdapter):
    """A bias for each of the layers that are named."""

    kind: ClassVar[str] = "beft"
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Linear,)

    targets: tuple[str, ...] = ("v_proj",)

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its bias."""
        return BeftLinear(layer, self)


class BeftLinear(AdaptedLayer):
    """`beft.Linear`: the bias is added in its own dtype, and the sum cast back."""

    def __init__(self, base_layer: Any, settings: Beft) -> None:
        super().__init__(base_layer)
        self.beft_bias = nn.parameter((1, widths(base_layer)[1]), settings.dtype_beside(base_layer))

    def forward(self, x: Tensor) -> Tensor:
        beft_bias = self.beft_bias.view(-1)
        result: Tensor = self.base_layer(x)
        orig_dtype = result.dtype
        result = (result + beft_bias).to(orig_dtype)
        return result
