"""Complex numbers, as rotary embeddings use them: pairs of fp32 seen as one number, turned by multiplication.

`torch.view_as_complex` and `torch.view_as_real` move nothing. Of complex factors, a product's gradient wants the
conjugates, which are flagged first and copied when the multiplication reads them (ConjugateFallback.cpp).
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import COMPLEX64, FLOAT32
from weigh.ghost.ops.pointwise import elementwise, like
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.ops.views import contiguous
from weigh.ghost.tensor import Tensor, normalise, product


class Polar(Op):
    """`torch.polar(absolute, angle)` of fp32: complex64."""

    name = "aten::polar"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, absolute: Tensor, angle: Tensor) -> Tensor:
        return elementwise("aten::polar", absolute, angle, COMPLEX64)


class ViewAsComplex(Op):
    """`torch.view_as_complex(x)`: (..., 2) in fp32 to (...). The gradient, contiguous, is seen as real numbers."""

    name = "aten::view_as_complex"
    source = "derivatives.yaml: view_as_complex"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shape, strides = x.shape[:-1], None
        if x.strides is not None:
            strides = normalise(shape, tuple(step // 2 for step in x.strides[:-1]))
        return _seen_as(x, shape, strides)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [view_as_real(contiguous(grad))]


class ViewAsReal(Op):
    """`torch.view_as_real(x)`: (...) in complex64 to (..., 2). The gradient, contiguous, is seen as complex numbers."""

    name = "aten::view_as_real"
    source = "derivatives.yaml: view_as_real"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shape, strides = (*x.shape, 2), None
        if x.strides is not None:
            strides = normalise(shape, (*(step * 2 for step in x.strides), 1))
        return _seen_as(x, shape, strides)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [view_as_complex(contiguous(grad))]


class MulComplex(Op):
    """`a * b` of complex numbers. mul_tensor_backward: `grad * other.conj()`."""

    name = "aten::mul.complex"
    source = "derivatives.yaml: mul.Tensor; FunctionsManual.cpp, mul_tensor_backward"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return elementwise("aten::mul", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        other = mul_complex(grad, apply(Conjugate, a)) if ctx.needs[1] else None
        return [mul_complex(grad, apply(Conjugate, b)) if ctx.needs[0] else None, other]


class Conjugate(Op):
    """The copy that a flagged conjugate becomes when it is read."""

    name = "aten::resolve_conj"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::clone", x)

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def _seen_as(x: Tensor, shape: tuple[Any, ...], strides: tuple[Any, ...] | None) -> Tensor:
    """The same storage in pairs, or pairs taken apart."""
    made = Tensor(x.storage, shape, strides, COMPLEX64 if x.dtype is FLOAT32 else FLOAT32, product(shape))
    made.is_view = True
    return made


def polar(absolute: Tensor, angle: Tensor) -> Tensor:
    """`torch.polar(absolute, angle)`."""
    return apply(Polar, absolute, angle)  # type: ignore[no-any-return]


def view_as_complex(x: Tensor) -> Tensor:
    """`torch.view_as_complex(x)`."""
    return apply(ViewAsComplex, x)  # type: ignore[no-any-return]


def view_as_real(x: Tensor) -> Tensor:
    """`torch.view_as_real(x)`."""
    return apply(ViewAsReal, x)  # type: ignore[no-any-return]


def mul_complex(a: Tensor, b: Tensor) -> Tensor:
    """`a * b` of complex numbers."""
    return apply(MulComplex, a, b)  # type: ignore[no-any-return]
