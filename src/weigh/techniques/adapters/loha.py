"""LoHa: the element-wise product of two thin products, made whole for every pass.

Read: peft (0.21), tuners/loha/layer.py and lycoris_utils.py. The product of the input with what was made is a linear
layer's, which keeps the made weight, in the adapters' dtype, until its backward pass; that makes both products anew.
"""

from __future__ import annotations

from typing import Any, ClassVar

from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class LoHa(LayerAdapter):
    """Four thin matrices beside each of the layers that are named."""

    kind: ClassVar[str] = "loha"
    harmless: ClassVar[tuple[str, ...]] = ("alpha", "alpha_pattern", "use_effective_conv2d")
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Linear,)

    rank: int = 8
    """Width of the adapters."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its matrices."""
        return LoHaLinear(layer, self)


class LoHaLinear(AdaptedLayer):
    """`loha.Linear`."""

    def __init__(self, base_layer: Any, settings: LoHa) -> None:
        super().__init__(base_layer)
        dtype, rank = settings.dtype_beside(base_layer), settings.rank
        width_in, width_out = widths(base_layer)
        self.hada_w1_a = nn.parameter((width_out, rank), dtype)
        self.hada_w1_b = nn.parameter((rank, width_in), dtype)
        self.hada_w2_a = nn.parameter((width_out, rank), dtype)
        self.hada_w2_b = nn.parameter((rank, width_in), dtype)

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        result: Tensor = self.base_layer(x)
        result = result + self._delta(x)
        result = result.to(previous_dtype)
        return result

    def _delta(self, x: Tensor) -> Tensor:
        weight: Tensor = apply(HadaWeight, self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        return ops.linear(x.to(weight.dtype), weight)


class HadaWeight(Op):
    """The weight. Saves the four."""

    name = "HadaWeight"
    source = "peft/tuners/loha/layer.py, class HadaWeight"

    @staticmethod
    def forward(ctx: Any, w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor) -> Tensor:
        if ctx:
            ctx.save(w1a, w1b, w2a, w2b)
        with no_grad():
            return (w1a.matmul(w1b) * w2a.matmul(w2b)) * 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        w1a, w1b, w2a, w2b = ctx.unpack()
        grad_out = grad * 2.0
        temp = grad_out * w2a.matmul(w2b)
        grad_w1a = temp.matmul(w1b.t())
        grad_w1b = w1a.t().matmul(temp)
        temp = grad_out * w1a.matmul(w1b)
        grad_w2a = temp.matmul(w2b.t())
        grad_w2b = w2a.t().matmul(temp)
        return [grad_w1a, grad_w1b, grad_w2a, grad_w2b]
