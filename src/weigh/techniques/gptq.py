"""Linear layers in GPTQ's packed integers, frozen, as AutoGPTQ (0.5) and the plugin of fms-acceleration run them.

Read: auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py (0.5.1); fms-acceleration, plugins/accelerated-peft,
gptqmodel/nn_modules/qlinear/qlinear_tritonv2.py and triton_utils/dequant.py. Weights are int32 words of eight four-bit
numbers, with zeros and 16-bit scales for every group of inputs, and the group of every input.

The Triton kernel makes the whole weight in fp16 for every product, forward and back, and keeps none. The older class
unpacks with single operations, through the weight in int32 and in int8; autograd keeps the unpacked weight of every
layer until its backward pass.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT16, INT8, INT32, DType
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


@dataclass(frozen=True, slots=True)
class Gptq(Technique):
    """Every linear layer of the blocks in four bits; the output layer stays as it is."""

    group_size: int = 128
    """Inputs that share a scale; 0 are all of a layer."""
    storage: DType = INT32
    """What the packed words pass for; FSDP wants the dtype of the other parameters."""
    unpacked: bool = False
    """Unpack by single operations ("cuda-old"), not in a Triton kernel."""

    @property
    def materialises(self) -> bool:
        """Weights come packed."""
        return True

    def apply(self, model: Module) -> None:
        """Put packed layers in place of linear ones.

        Raises:
            WeighError: the model has no blocks with linear layers.
        """
        replace_linear(model, lambda linear: GptqLinear(linear, self))
        name_modules(model)


class GptqLinear(PackedLinear):
    """AutoGPTQ's `QuantLinear`: words (in / 8, out), zeros (groups, out / 8), scales (groups, out) in fp16."""

    def __init__(self, linear: nn.Linear, settings: Gptq) -> None:
        super().__init__(linear.weight.shape, FLOAT16)
        width_out, width_in = self.shape
        self.groups: Size = -(-width_in // settings.group_size) if settings.group_size else 1
        words = INT32.itemsize // settings.storage.itemsize
        self.unpacked = settings.unpacked
        self.weight = nn.parameter((width_in // PER_WORD, width_out * words), settings.storage)  # qweight
        self.qzeros = nn.parameter((self.groups, width_out // PER_WORD * words), settings.storage)
        for packed in (self.weight, self.qzeros):
            packed.requires_grad = False
        self.scales = nn.buffer((self.groups, width_out), FLOAT16)
        self.g_idx = nn.buffer((width_in,), INT32)
        self.bias = None if linear.bias is None else nn.buffer((width_out,), FLOAT16)

    def elements_of(self, parameter: str) -> Size:
        """Zeros stand for no weights."""
        return 0 if parameter == "qzeros" else super().elements_of(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x_dtype = x.dtype
        out_shape = (*x.shape[:-1], self.shape[0])
        x = x.reshape(-1, x.shape[-1])
        if self.unpacked:
            weight = self.unpack()
            out: Tensor = ops.matmul(x, weight).to(x_dtype).reshape(*out_shape)
        else:
            out = apply(QuantLinearFunction, x, self.weight, layer=self).to(FLOAT16).reshape(*out_shape)
        return out if self.bias is None else out + self.bias

    def unpack(self) -> Tensor:
        """The weight (in, out) in fp16, by the operations of `qlinear_cuda_old.py`."""
        width_out, width_in = self.shape
        with no_grad():
            zeros = _shifted((self.groups, width_out))
            zeros = empty((self.groups, width_out), INT8, "aten::add")
            weight = _shifted((width_in, width_out))
            less = empty(weight.shape, INT8, "aten::sub")
            scaled = empty(weight.shape, FLOAT16, "aten::mul")
            del less, zeros
        return scaled

    def dequantize(self) -> Tensor:
        """`dequant248`: the weight (in, out) in fp16."""
        return empty(self.shape[::-1], FLOAT16, "dequant_kernel_248")


def _shifted(shape: tuple[Size, ...]) -> Tensor:
    """Words shifted for each of their numbers, in int8, and masked."""
    shifted = empty(shape, INT32, "aten::bitwise_right_shift")
    narrow = empty(shape, INT8, "aten::_to_copy")
    del shifted
    return empty(narrow.shape, INT8, "aten::bitwise_and")


class QuantLinearFunction(Op):
    """A product with a weight that is made for it; saves neither."""

    name = "QuantLinearFunction"
    source = "qlinear_tritonv2.py and triton_utils/dequant.py, class QuantLinearFunction"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *, layer: GptqLinear) -> Tensor:
        if ctx:
            ctx.meta = layer
        with no_grad():
            return ops.matmul(x, layer.dequantize())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer: GptqLinear = ctx.meta
        return [ops.matmul(grad, layer.dequantize().t()), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0  # its product counts itself
