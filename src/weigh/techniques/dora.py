"""DoRA: an adapter that also learns the length of every row of the weight, as peft (0.21) runs it.

Read: peft/tuners/lora/dora.py and variants.py. Every pass makes the adapters' whole product anew, from an identity
matrix as wide as the input, casts the frozen weight to the adapters' dtype and sums the two: thrice the weight in
fp32, and more, while one layer runs. With dropout the frozen product is made a second time, and keeps the cast weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.ghost import nn, ops
from weigh.techniques.lora import LoraLinear

if TYPE_CHECKING:
    from weigh.ghost.tensor import Tensor
    from weigh.techniques.lora import Lora


class DoraLinear(LoraLinear):
    """peft's `lora.Linear` with `use_dora`."""

    def __init__(self, base_layer: nn.Linear | nn.Conv1D, settings: Lora) -> None:
        super().__init__(base_layer, settings)
        self.lora_magnitude_vector = nn.parameter((self.lora_B.weight.shape[0],), self.lora_B.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result_dtype = result.dtype
        x = x.to(self.lora_A.weight.dtype)
        base_result: Tensor | None = result
        if self.p and self.training:
            x = ops.dropout(x, self.p, True)
            base_result = None
        result = result + self.dora(x, base_result)
        result = result.to(result_dtype)
        return result

    def dora(self, x: Tensor, base_result: Tensor | None) -> Tensor:
        """`DoraLinearLayer.forward`: what is added to the frozen result."""
        lora_weight = self._lora_weight()
        magnitude = self.lora_magnitude_vector
        weight = self.base_layer.weight.to(x.dtype)
        weight_norm = self._weight_norm(weight, lora_weight.detach())
        mag_norm_scale = (magnitude / weight_norm).view(1, -1)
        lora_result = self.lora_B(self.lora_A(x))
        if base_result is None:
            base_result = ops.linear(x, weight.t() if isinstance(self.base_layer, nn.Conv1D) else weight, None)
        elif self.base_layer.bias is not None:
            base_result = base_result - self.base_layer.bias
        result_dora: Tensor = (mag_norm_scale - 1) * base_result + mag_norm_scale * lora_result * 2.0
        return result_dora

    def _lora_weight(self) -> Tensor:
        """`get_lora_weight`: (out, in), by running the adapters on an identity matrix."""
        x_eye: Tensor = ops.eye(self.lora_A.weight.shape[1], self.lora_A.weight.dtype)
        lora_weight: Tensor = self.lora_B(self.lora_A(x_eye)).t()
        return lora_weight

    def _weight_norm(self, weight: Tensor, lora_weight: Tensor) -> Tensor:
        """`get_weight_norm`, of every row; nothing in it wants a gradient."""
        if isinstance(self.base_layer, nn.Conv1D):
            weight = weight.t()
        weight = weight + lora_weight * 2.0
        weight_norm: Tensor = ops.vector_norm(weight, 1)
        return weight_norm
