"""Linear layers whose frozen weights are stored in four bits, and made whole for each product (bitsandbytes).

Read: bitsandbytes 0.41.1 and 0.42.0, `autograd/_functions.py` (`MatMul4Bit`) and `functional.py` (`dequantize_4bit`).

What decides the memory: both passes make the weight whole for the time of one product, in the fp16 in which it was
quantized (`Params4bit.cuda`) and once more in the dtype of the product; with double quantization the scales too. The
node of a product keeps its input as an attribute, not as a saved tensor, so that no checkpoint drops it, and it lives
as long as the graph: until the loss is dropped.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape
from weigh.dtypes import FLOAT16, FLOAT32, UINT8, DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor, empty

BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that share a scale, and scales that share one of their own."""


class Linear4bit(nn.Linear):
    """`bnb.nn.Linear4bit`: two numbers a byte, and a scale in fp32, or in eight bits where `double`."""

    def __init__(self, width_in: int, width_out: int, dtype: DType, bias: bool = False, double: bool = False) -> None:
        nn.Module.__init__(self)
        numel = width_in * width_out
        blocks = -(-numel // BLOCK)
        self.whole: Shape = (width_out, width_in)
        self.double = double
        self.weight = nn.parameter((-(-numel // 2), 1), UINT8)
        self.weight.requires_grad = False
        self.absmax = nn.buffer((blocks,), UINT8 if double else FLOAT32)
        self.quant_map = nn.buffer((16,), FLOAT32)
        if double:
            self.nested_absmax = nn.buffer((-(-blocks // NESTED_BLOCK),), FLOAT32)
            self.nested_quant_map = nn.buffer((256,), FLOAT32)
        self.bias = nn.parameter((width_out,), dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return apply(MatMul4Bit, x, self.weight, self.bias, layer=self)  # type: ignore[no-any-return]

    def dequantize(self, dtype: DType) -> Tensor:
        """The whole weight (out, in) in fp16, in which it was quantized, and then in the dtype of the product."""
        absmax = self.absmax
        if self.double:
            absmax = empty(self.absmax.shape, FLOAT32, "bitsandbytes::dequantize_blockwise")
        whole = empty(self.whole, FLOAT16, "bitsandbytes::dequantize_4bit")
        del absmax
        return whole.to(dtype)


class MatMul4Bit(Op):
    """`x @ weight.T + bias`."""

    name = "MatMul4Bit"
    source = "bitsandbytes/autograd/_functions.py"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, layer: Linear4bit) -> Tensor:
        if ctx:
            ctx.meta = layer, x if ctx.needs[0] else None
        with no_grad():
            return ops.linear(x, layer.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer = ctx.meta[0]
        bias = ops.sum(grad, tuple(range(len(grad.shape) - 1))) if ctx.needs[2] else None
        return [grad.matmul(layer.dequantize(grad.dtype)) if ctx.needs[0] else None, None, bias]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Any:
        return 2 * out.numel * tensors[0].shape[-1]
