"""Linear layers in HQQ's packed four bits, frozen, as HQQ (0.2.8) multiplies with them by PyTorch's own operations.

Read: hqq/core/{quantize,bitpack}.py (`HQQLinear`, `HQQMatmulNoCacheMul`, `unpack_4bit_u8`); peft/tuners/lora/hqq.py.
Every product makes the whole weight anew in the dtype that is computed in: unpacked, less its zeros, times its scales.
The node keeps the input. Zeros and scales are not quantized themselves.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size, product
from weigh.dtypes import UINT8
from weigh.errors import UsageError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.packed import PackedLinear, replace_linear

PER_BYTE = 2


@dataclass(frozen=True, slots=True)
class Hqq(Technique):
    """Every linear layer of the blocks in four bits; the output layer stays as it is."""

    group_size: int = 64
    """Weights that share a zero and a scale."""

    @property
    def materialises(self) -> bool:
        """Weights are quantized one by one as they are loaded."""
        return True

    def apply(self, model: Module) -> None:
        """Put packed layers in place of linear ones.

        Raises:
            WeighError: the model has no blocks with linear layers.
        """
        replace_linear(model, lambda linear: HqqLinear(linear, self))
        name_modules(model)


class HqqLinear(PackedLinear):
    """`HQQLinear`: two codes a byte (numbers / groups / 2, group), zeros and scales (groups, 1)."""

    def __init__(self, linear: nn.Linear, settings: Hqq) -> None:
        super().__init__(linear.weight.shape, linear.weight.dtype)
        groups: Size = product(self.shape) // settings.group_size
        if groups % PER_BYTE or groups * settings.group_size != product(self.shape):
            raise UsageError(
                f"pairs of groups of {settings.group_size} weights do not fill a layer of {self.shape}",
                where="group_size",
                hint="HQQ packs groups in pairs; 64 fits most models.",
            )
        self.weight = nn.parameter((groups // PER_BYTE, settings.group_size), UINT8)  # W_q
        self.weight.requires_grad = False
        self.scale = nn.buffer((groups, 1), self.dtype)
        self.zero = nn.buffer((groups, 1), self.dtype)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return apply(HQQMatmulNoCacheMul, x, self.weight, layer=self)  # type: ignore[no-any-return]

    def dequantize(self) -> Tensor:
        """`Quantizer.dequantize`: the weight (out, in)."""
        half = self.weight.shape
        whole = empty((half[0] * PER_BYTE, half[1]), self.dtype, "aten::empty")
        masked = empty(half, UINT8, "aten::bitwise_and")
        shifted = empty(half, UINT8, "aten::bitwise_right_shift")
        del masked, shifted
        empty(half, UINT8, "aten::bitwise_and")
        return ((whole - self.zero) * self.scale).reshape(*self.shape)


class HQQMatmulNoCacheMul(Op):
    """A product with a weight that is made for it. Saves its input."""

    name = "HQQMatmulNoCacheMul"
    source = "hqq/core/quantize.py, class HQQMatmulNoCacheMul"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *, layer: HqqLinear) -> Tensor:
        with no_grad():
            weight = layer.dequantize()
            out: Tensor = ops.matmul(x, weight.t())
            if layer.bias is not None:
                out = ops.add_(out, layer.bias)
        if ctx:
            ctx.meta = layer
            ctx.save(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer: HqqLinear = ctx.meta
        ctx.unpack()
        weight = layer.dequantize()
        return [ops.matmul(grad, weight), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 2 * out.numel * tensors[0].shape[-1]  # type: ignore[no-any-return]
