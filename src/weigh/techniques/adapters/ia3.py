"""(IA)³: a vector that stretches what a layer gives, or what a feed-forward layer takes, as peft (0.21) runs it.

Read: peft/tuners/ia3/layer.py. With vectors in fp32 beside a half-precision layer, its output (input) is made fp32 to
be multiplied and cast back: the layer's output stays for the vector's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, matches, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class IA3(LayerAdapter):
    """A vector for each of the layers that are named."""

    kind: ClassVar[str] = "ia3"
    keys: ClassVar[Mapping[str, str]] = {"feedforward": "feedforward_modules"}
    harmless: ClassVar[tuple[str, ...]] = ("init_ia3_weights",)

    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    feedforward: tuple[str, ...] = ("down_proj",)
    """Those of the targets whose input is multiplied, not the output."""

    def as_peft(self) -> dict[str, Any]:
        """As for every method; peft wants the feed-forward layers to be targets."""
        chosen = [name for name in self.feedforward if name in self.targets]
        return LayerAdapter.as_peft(self) | {"feedforward_modules": chosen}

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its vector."""
        name = layer.path.split(".")[-1]
        return IA3Linear(layer, self, any(matches(layer.path, name, pattern) for pattern in self.feedforward))


class IA3Linear(AdaptedLayer):
    """`IA3Layer`: the vector is (1, in) before a feed-forward layer, else (out, 1)."""

    def __init__(self, base_layer: Any, settings: IA3, feedforward: bool) -> None:
        super().__init__(base_layer)
        width_in, width_out = widths(base_layer)
        self.feedforward = feedforward
        shape = (1, width_in) if feedforward else (width_out, 1)
        self.ia3_l = nn.parameter(shape, settings.dtype_beside(base_layer))

    def forward(self, x: Tensor) -> Tensor:
        ia3_scaling = self.ia3_l.view(-1) * 1.0
        if self.feedforward:
            previous_dtype = x.dtype
            x = x.to(self.ia3_l.dtype)
            interm = (x * ia3_scaling).to(previous_dtype)
            result: Tensor = self.base_layer(interm)
        else:
            result = self.base_layer(x)
            result_dtype = result.dtype
            result = (result * ia3_scaling).to(result_dtype)
        return result
