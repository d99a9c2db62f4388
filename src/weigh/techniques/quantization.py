"""Linear layers in four bits (`int8.py`: eight), as bitsandbytes (0.43) stores and multiplies them under peft and TRL.

Read: bitsandbytes/nn/modules.py (`Linear4bit`), autograd/_functions.py (`MatMul4Bit`), functional.py (`quantize_4bit`,
`dequantize_4bit`); peft/utils/other.py (`prepare_model_for_kbit_training`); trl/trainer/utils.py
(`peft_module_casting_to_bf16`). Every product makes the whole weight anew, forward and back, and keeps none of it.

Up to 0.42 (read: 0.41.1 and 0.42.0) weights were quantized, and so are made whole, in fp16; and the node of a product
keeps its input as an attribute, not as a saved tensor: no checkpoint drops it, and it lives until the loss is dropped.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT16, FLOAT32, UINT8, DType
from weigh.errors import UnknownNameError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module, name_modules
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import inside_unit, no_grad
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.packed import PackedLinear, replace_linear
from weigh.trace.events import WEIGHT

FOUR_BITS = ("nf4", "fp4")
"""Both are four bits with a number for every block: they need the same memory."""
INT8 = "int8"
"""LLM.int8(), see `weigh.techniques.int8`."""
METHODS = (*FOUR_BITS, INT8, "gptq", "awq", "hqq")
"""All that a training can be asked for; `techniques/gptq.py`, `awq.py` and `hqq.py` have the last three."""
UPCASTS = ("norms", "all")

BLOCK = 64
"""Weights that share a scale."""
NESTED_BLOCK = 256
"""Scales that share a scale, where they are quantized themselves."""
DYNAMIC_MAP = 256
"""Numbers of the 8-bit code that all layers share."""


@dataclass(frozen=True, slots=True)
class Quantization(Technique):
    """Every linear layer of the blocks quantized by bitsandbytes; the output layer stays as it is."""

    method: str = "nf4"
    """ "nf4", "fp4" or "int8"."""
    nested: bool = False
    """The scales are quantized too (`bnb_4bit_use_double_quant`)."""
    storage: DType = UINT8
    """What the packed weights pass for (`bnb_4bit_quant_storage`); FSDP wants that of the other parameters."""
    upcast: str | None = None
    """What is made fp32 before training: "all" that is not quantized (peft's `prepare_model_for_kbit_training`), or
    "norms" (TRL, which makes the embeddings and the output layer bf16 again)."""
    early: bool = False
    """As bitsandbytes did up to 0.42."""

    @property
    def materialises(self) -> bool:
        """Weights are quantized one by one as they are loaded."""
        return True

    def apply(self, model: Module) -> None:
        """Put quantized layers in place of linear ones.

        Raises:
            UnknownNameError: an unknown method, or upcast.
            WeighError: the model has no blocks with linear layers.
        """
        if self.method not in (*FOUR_BITS, INT8):
            raise UnknownNameError("method of quantization", self.method, METHODS)
        if self.upcast is not None and self.upcast not in UPCASTS:
            raise UnknownNameError("upcast", self.upcast, UPCASTS)
        if self.method == INT8:
            from weigh.techniques.int8 import Linear8bitLt

            replace_linear(model, Linear8bitLt)
        else:
            replace_linear(model, lambda linear: Linear4bit(linear, self))
            model.dynamic_map = nn.buffer((DYNAMIC_MAP,), FLOAT32)  # type: ignore[attr-defined]
        if self.upcast is not None:
            self._upcast(model)
        name_modules(model)

    def _upcast(self, model: Module) -> None:
        for module in model.modules():
            if isinstance(module, PackedLinear) or (self.upcast == "norms" and module.role != nn.NORM):
                continue
            for attribute, tensor in list(module.own_tensors()):
                if tensor.storage.purpose == WEIGHT and tensor.dtype is not FLOAT32:
                    with inside_unit(tensor.storage.unit):
                        setattr(module, attribute, nn.parameter(tensor.shape, FLOAT32))


class Linear4bit(PackedLinear):
    """`bitsandbytes.nn.Linear4bit`: packed weights (n, 1), and the scales of their blocks."""

    def __init__(self, linear: nn.Linear, settings: Quantization) -> None:
        weight = linear.weight
        super().__init__(weight.shape, FLOAT16 if settings.early else weight.dtype)
        self.keeps_inputs = settings.early
        self.blocks: Size = -(-weight.numel // BLOCK)
        self.nested = settings.nested
        packed = -(-weight.numel // (2 * settings.storage.itemsize))
        self.weight = nn.parameter((packed, 1), settings.storage)
        self.weight.requires_grad = False
        self.absmax = nn.buffer((self.blocks,), UINT8 if settings.nested else FLOAT32)
        self.code = nn.buffer((16,), FLOAT32)
        if settings.nested:
            self.absmax2 = nn.buffer((-(-self.blocks // NESTED_BLOCK),), FLOAT32)
            self.offset = nn.buffer((), FLOAT32)
        self.bias = linear.bias
        self.compute_dtype: DType | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The first input says in which dtype the layer computes (`set_compute_type`)."""
        if self.compute_dtype is None:
            self.compute_dtype = x.dtype
        inp_dtype = x.dtype
        x = x.to(self.compute_dtype)
        out: Tensor = apply(MatMul4Bit, x, self.weight, self.bias, layer=self)
        out = out.to(inp_dtype)
        return out

    def dequantize(self) -> Tensor:
        """`dequantize_4bit`: the whole weight (out, in); its scales are dequantized first."""
        absmax = empty((self.blocks,), FLOAT32, "dequantize_blockwise") if self.nested else None
        out = empty(self.shape, self.dtype, "dequantize_4bit")
        del absmax
        return out


class MatMul4Bit(Op):
    """A product with a weight that is made for it; saves neither."""

    name = "MatMul4Bit"
    source = "bitsandbytes/autograd/_functions.py, class MatMul4Bit"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, layer: Linear4bit) -> Tensor:
        if ctx:
            ctx.meta = layer, x if layer.keeps_inputs else None
        with no_grad():
            return ops.linear(x, layer.dequantize().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        layer: Linear4bit = ctx.meta[0]
        return [ops.matmul(grad, layer.dequantize().to(grad.dtype)), None, None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0  # its product counts itself
