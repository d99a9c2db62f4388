"""Linear layers in AWQ's packed integers, frozen, as AutoAWQ (0.2.9, with its CUDA kernels) runs them.

Read: awq/modules/linear/gemm.py (`WQLinear_GEMM`, `WQLinearMMFunction`); peft/tuners/lora/awq.py. The layer computes in
fp16. From 1,024 tokens on the whole weight is made for every product, below a kernel multiplies with the packed one.
Its node keeps the input; the gradient's product copies the whole weight for every sequence of the batch. That is
transformers 4; transformers 5 takes gptqmodel's layers, which were not read.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT16, INT32
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.packed import PackedLinear, replace_linear

PER_WORD = 8
"""Four-bit numbers of an int32."""
WHOLE_FROM = 1024
"""Tokens from which on the weight is made whole."""


@dataclass(frozen=True, slots=True)
class Awq(Technique):
    """Every linear layer of the blocks in four bits; the output layer stays as it is."""

    group_size: int = 128
    """Inputs that share a scale; 0 are all of a layer."""

    @property
    def materialises(self) -> bool:
        """Weights come packed."""
        return True

    def apply(self, model: Module) -> None:
        """Put packed layers in place of linear ones.

        Raises:
            WeighError: the model has no blocks with linear layers.
        """
        replace_linear(model, lambda linear: AwqLinear(linear, self))
        name_modules(model)


class AwqLinear(PackedLinear):
    """`WQLinear_GEMM`: words (in, out / 8), zeros (groups, out / 8), scales (groups, out) in fp16."""

    def __init__(self, linear: nn.Linear, settings: Awq) -> None:
        super().__init__(linear.weight.shape, FLOAT16)
        width_out, width_in = self.shape
        groups: Size = width_in // settings.group_size if settings.group_size else 1
        self.weight = nn.parameter((width_in, width_out // PER_WORD), INT32)  # qweight
        self.weight.requires_grad = False
        self.qzeros = nn.buffer((groups, width_out // PER_WORD), INT32)
        self.scales = nn.buffer((groups, width_out), FLOAT16)
        self.bias = None if linear.bias is None else nn.buffer((width_out,), FLOAT16)

    def forward(self, x: Tensor) -> Tensor:
        input_dtype = x.dtype
        x = x.to(FLOAT16)
        out: Tensor = apply(WQLinearMM, x, self.weight, layer=self)
        out = out.to(input_dtype)
        return out

    def dequantize(self) -> Tensor:
        """`dequantize_weights_cuda`: the weight (in, out) in fp16."""
        return empty(self.shape[::-1], FLOAT16, "dequantize_weights_cuda")


class WQLinearMM(Op):
    """A product with the packed weight. Saves its input."""

    name = "WQLinearMMFunction"
    source = "awq/modules/linear/gemm.py, class WQLinearMMFunction"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *, layer: AwqLinear) -> Tensor:
        if ctx:
            ctx.meta = layer
            ctx.save(x)
        shape = (*x.shape[:-1], layer.shape[0])
        with no_grad():
            if x.shape[0] * x.shape[1] >= WHOLE_FROM:
                out = layer.dequantize()
                out = ops.matmul(x, out)
            else:
                out = empty(shape, FLOAT16, "gemm_forward_cuda")
            if layer.bias is not None:
                out = out + layer.bias
        return out.reshape(*shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer: AwqLinear = ctx.meta
        ctx.unpack()
        weights = layer.dequantize().to(grad.dtype)
        return [ops.bmm(grad, ops.repeat(weights.transpose(0, 1).unsqueeze(0), grad.shape[0], 1, 1)), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 2 * out.numel * tensors[0].shape[-1]  # type: ignore[no-any-return]
