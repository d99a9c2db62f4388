"""Linear layers by LLM.int8(), frozen, as bitsandbytes (0.50) multiplies with them on CUDA.

Read: bitsandbytes/autograd/_functions.py (`MatMul8bitLt`), backends/cuda/ops.py (`int8_vectorwise_quant`,
`int8_linear_matmul`, `int8_mm_dequant`), backends/default/ops.py (`int8_mixed_scaled_mm`). Inputs are quantized row by
row, and the product is made in int32, then in fp16, then in the input's dtype. The node keeps its input as an
attribute, not as a saved tensor, so that no checkpoint but a reentrant one drops it. The backward pass makes the weight
whole.

How many features are outliers depends on the numbers: none are counted here.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT16, FLOAT32, INT8, INT32
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty
from weigh.techniques.packed import PackedLinear


class Linear8bitLt(PackedLinear):
    """`bitsandbytes.nn.Linear8bitLt(has_fp16_weights=False)`: weights (out, in) in int8, a scale for every row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.weight.shape, linear.weight.dtype)
        self.weight = nn.parameter(linear.weight.shape, INT8)
        self.weight.requires_grad = False
        self.SCB = nn.buffer((linear.weight.shape[0],), FLOAT32)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = apply(MatMul8bitLt, x, self.weight, self.bias, layer=self)
        return out


class MatMul8bitLt(Op):
    """A product in whole numbers; the gradient of its input is one with the weight made whole."""

    name = "MatMul8bitLt"
    source = "bitsandbytes/autograd/_functions.py, class MatMul8bitLt"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, layer: Linear8bitLt) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        CA, SCA = _vectorwise_quant(rows)
        shape = (rows.shape[0], weight.shape[0])
        out_i32 = empty(shape, INT32, "bitsandbytes::int8_linear_matmul")
        output = empty(shape, FLOAT16, "bitsandbytes::int8_mm_dequant").to(x.dtype)
        del out_i32, CA, SCA
        if ctx:
            ctx.meta = layer, rows, x.shape
        return output.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer, rows, shape = ctx.meta
        grad_output = grad.reshape(-1, grad.shape[-1]).contiguous()
        CB = empty(layer.shape, rows.dtype, "aten::_to_copy")
        return [ops.matmul(grad_output.to(rows.dtype), CB).view(*shape), None, None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 2 * out.numel * tensors[0].shape[-1]  # type: ignore[no-any-return]


def _vectorwise_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """`int8_vectorwise_quant` of (rows, in) with a threshold: int8 numbers, a scale for every row."""
    half = x.to(FLOAT16)
    row_stats = empty(x.shape[:1], FLOAT32, "bitsandbytes::int8_vectorwise_quant")
    out_row = empty(x.shape, INT8, "bitsandbytes::int8_vectorwise_quant")
    magnitudes = empty(x.shape, FLOAT16, "aten::abs")
    outliers = empty(x.shape, BOOL, "aten::ge")
    del magnitudes, outliers, half
    return out_row, row_stats
