"""What position biases are made of: whole numbers compared, clipped and bucketed, powers, fills. Outside autograd."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import BOOL, FLOAT32
from weigh.ghost.ops.pointwise import broadcast, elementwise, like
from weigh.ghost.ops.reduction import sum
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.ops.views import reshape
from weigh.ghost.tensor import Tensor, empty


class _Compare(Op):
    """A comparison: booleans."""

    differentiable = 0

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
        op = cls.name.removesuffix(".Scalar")
        return elementwise(op, x, others[0], BOOL) if others else like(op, x, BOOL)


class LessScalar(_Compare):
    """`x < 1`."""

    name = "aten::lt.Scalar"


class GreaterScalar(_Compare):
    """`x > 1`."""

    name = "aten::gt.Scalar"


class EqualScalar(_Compare):
    """`x == 1`."""

    name = "aten::eq.Scalar"


class GreaterEqual(_Compare):
    """`a >= b`."""

    name = "aten::ge"


class _Plain(Op):
    """One input, one output of its shape and dtype."""

    differentiable = 0

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        return like(cls.name, x)


class Abs(_Plain):
    """`torch.abs(x)`."""

    name = "aten::abs"


class Log(_Plain):
    """`torch.log(x)`."""

    name = "aten::log"


class Log1p(_Plain):
    """`torch.log1p(x)`."""

    name = "aten::log1p"


class FullLike(_Plain):
    """`torch.full_like(x, value)`."""

    name = "aten::full_like"


class ZerosLike(_Plain):
    """`torch.zeros_like(x)`."""

    name = "aten::zeros_like"


class NewZeros(_Plain):
    """`x.new_zeros(x.shape)`: contiguous."""

    name = "aten::new_zeros"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, cls.name)


class Power(Op):
    """`torch.pow(base, exponents)` of an fp32 number and whole numbers."""

    name = "aten::pow.Tensor"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, base: Tensor, exponents: Tensor) -> Tensor:
        return elementwise("aten::pow", base, exponents, FLOAT32)


class MaskedFill(Op):
    """`x.masked_fill(mask, value)`: a contiguous copy, as large as both together. Saves the mask."""

    name = "aten::masked_fill"
    source = "derivatives.yaml: masked_fill.Scalar"

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        if ctx:
            ctx.save(mask)
        return empty(broadcast(x.shape, mask.shape), x.dtype, "aten::masked_fill")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (mask,) = ctx.unpack()
        return [masked_fill(grad, mask), None]


class MaskedFillInPlace(MaskedFill):
    """`x.masked_fill_(mask, value)`, where `x` is nobody else's: the same storage. Saves the mask."""

    name = "aten::masked_fill_"

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        if ctx:
            ctx.save(mask)
        return x.alias()


class Repeat(Op):
    """`x.repeat(sizes)`: a contiguous copy, even where every size is one.

    repeat_backward: the new dimensions summed one by one, then the copies in the others, all at once.
    """

    name = "aten::repeat"
    source = "derivatives.yaml: repeat; FunctionsManual.cpp, repeat_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, sizes: Shape) -> Tensor:
        if ctx:
            ctx.meta = sizes
        whole = (*[1] * (len(sizes) - len(x.shape)), *x.shape)
        return empty(tuple(a * b for a, b in zip(whole, sizes, strict=True)), x.dtype, "aten::repeat")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        shape, sizes = ctx.inputs[0][0], ctx.meta
        for _ in range(len(sizes) - len(shape)):
            grad = sum(grad, (0,))
        split: list[Size] = []
        copies: list[int] = []
        for size, repeats in zip(shape, sizes[len(sizes) - len(shape) :], strict=True):
            if repeats != 1:
                copies.append(len(split))
                split.append(repeats)
            split.append(size)
        return [sum(reshape(grad, tuple(split)), tuple(copies)) if copies else grad]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def less_than(x: Tensor) -> Tensor:
    """`x < 1`."""
    return apply(LessScalar, x)  # type: ignore[no-any-return]


def greater_than(x: Tensor) -> Tensor:
    """`x > 1`."""
    return apply(GreaterScalar, x)  # type: ignore[no-any-return]


def equal_to(x: Tensor) -> Tensor:
    """`x == 1`."""
    return apply(EqualScalar, x)  # type: ignore[no-any-return]


def greater_equal(a: Tensor, b: Tensor) -> Tensor:
    """`a >= b`."""
    return apply(GreaterEqual, a, b)  # type: ignore[no-any-return]


def absolute(x: Tensor) -> Tensor:
    """`torch.abs(x)`."""
    return apply(Abs, x)  # type: ignore[no-any-return]


def log(x: Tensor) -> Tensor:
    """`torch.log(x)`."""
    return apply(Log, x)  # type: ignore[no-any-return]


def log1p(x: Tensor) -> Tensor:
    """`torch.log1p(x)`."""
    return apply(Log1p, x)  # type: ignore[no-any-return]


def full_like(x: Tensor) -> Tensor:
    """`torch.full_like(x, value)`."""
    return apply(FullLike, x)  # type: ignore[no-any-return]


def zeros_as(x: Tensor) -> Tensor:
    """`torch.zeros_like(x)` of a tensor that is no parameter."""
    return apply(ZerosLike, x)  # type: ignore[no-any-return]


def new_zeros(x: Tensor) -> Tensor:
    """`x.new_zeros(x.shape)`."""
    return apply(NewZeros, x)  # type: ignore[no-any-return]


def power(base: Tensor, exponents: Tensor) -> Tensor:
    """`torch.pow(base, exponents)`."""
    return apply(Power, base, exponents)  # type: ignore[no-any-return]


def masked_fill(x: Tensor, mask: Tensor) -> Tensor:
    """`x.masked_fill(mask, value)`."""
    return apply(MaskedFill, x, mask)  # type: ignore[no-any-return]


def masked_fill_(x: Tensor, mask: Tensor) -> Tensor:
    """`x.masked_fill_(mask, value)`."""
    return apply(MaskedFillInPlace, x, mask)  # type: ignore[no-any-return]


def repeat(x: Tensor, *sizes: Size) -> Tensor:
    """`x.repeat(sizes)`."""
    return apply(Repeat, x, sizes=sizes)  # type: ignore[no-any-return]
