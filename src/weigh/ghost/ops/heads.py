"""What families do to heads on their own: picking some by a list, pairing neighbours, scores scaled in place."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size, product
from weigh.dtypes import INT64
from weigh.ghost.ops.matmul import bmm
from weigh.ghost.ops.pointwise import DivScalar, Mul, MulScalar, like, mul, neg
from weigh.ghost.ops.table import LOWER, Op, apply
from weigh.ghost.ops.views import SliceBackward, narrow, squeeze
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty, normalise


class Index(Op):
    """`x[..., [n], ...]`: a list is an index tensor on the device, which is saved, and what it picks is copied.

    IndexBackward0: `index_put_` into zeros; a second tensor where tensors are seen by a dispatch mode.
    """

    name = "aten::index"
    source = "derivatives.yaml: index.Tensor; FunctionsManual.cpp, index_backward; python_variable_indexing.cpp"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int, count: int) -> Tensor:
        indices = empty((count,), INT64, "aten::_to_copy")
        if ctx:
            ctx.save(indices)
        return empty((*x.shape[:dim], count, *x.shape[dim + 1 :]), x.dtype, "aten::index")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (_indices,) = ctx.unpack()
        return [apply(IndexBackward, grad, shape=ctx.inputs[0][0])]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class IndexBackward(Op):
    """`index_backward`: zeros of the input's shape, the gradient put in."""

    name = "aten::index_put"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *, shape: Shape) -> Tensor:
        zeros = empty(shape, grad.dtype, "aten::new_zeros")
        return empty(shape, grad.dtype, "aten::index_put") if state.traced else zeros


class IndexRows(Op):
    """`x[rows]`, for rows in a tensor on the device, which is saved: a copy of them."""

    name = "aten::index.rows"
    source = "derivatives.yaml: index.Tensor"

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        if ctx:
            ctx.save(rows)
        return empty((*rows.shape, *x.shape[1:]), x.dtype, "aten::index")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (_rows,) = ctx.unpack()
        return [apply(IndexBackward, grad, shape=ctx.inputs[0][0]), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class EveryOther(Op):
    """`x[..., ::2]`. SliceBackward0, as for any slice."""

    name = "aten::slice.step"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], (x.shape[-1] + 1) // 2)
        strides = x.stride()
        return Tensor(x.storage, shape, normalise(shape, (*strides[:-1], strides[-1] * 2)), x.dtype, product(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [apply(SliceBackward, grad, shape=ctx.inputs[0][0])]


class StackLast(Op):
    """`torch.stack(tensors, dim=-1)`. StackBackward0: the gradient unbound, views."""

    name = "aten::stack.last"
    source = "derivatives.yaml: stack"

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        return empty((*tensors[0].shape, len(tensors)), tensors[0].dtype, "aten::stack")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [squeeze(narrow(grad, -1, 1), -1) if need else None for need in ctx.needs]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Baddbmm(Op):
    """`bias.baddbmm(a, b, alpha=...)`. The products of the gradient are scaled one by one."""

    name = "aten::baddbmm"
    source = "derivatives.yaml: baddbmm"
    autocast = LOWER

    @staticmethod
    def forward(ctx: Any, bias: Tensor, a: Tensor, b: Tensor, *, scaled: bool = True) -> Tensor:
        if ctx:
            ctx.meta = scaled
            ctx.save(a if ctx.needs[2] else None, b if ctx.needs[1] else None)
        return empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype, "aten::baddbmm")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        left = bmm(grad, b.transpose(1, 2)) if ctx.needs[1] else None
        left = mul(left, 0.125) if ctx.meta and left is not None else left
        right = bmm(a.transpose(1, 2), grad) if ctx.needs[2] else None
        right = mul(right, 0.125) if ctx.meta and right is not None else right
        return [grad if ctx.needs[0] else None, left, right]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[1].shape[-1] + 1)  # type: ignore[no-any-return]


class MulScalarInPlace(MulScalar):
    """`x *= 2`, where `x` is nobody else's: the same storage."""

    name = "aten::mul_.Scalar"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, fraction: bool = False) -> Tensor:
        return x.alias()


class MulInPlace(Mul):
    """`x *= factor`, where `x` has the product's shape and dtype and is nobody else's: the same storage."""

    name = "aten::mul_.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return a.alias()


class DivScalarInPlace(DivScalar):
    """`x /= 2`, where `x` is nobody else's: the same storage."""

    name = "aten::div_.Scalar"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *, fraction: bool = False) -> Tensor:
        return x.alias()


class RsubScalar(Op):
    """`1 - x`. The gradient is `-grad`."""

    name = "aten::rsub.Scalar"
    source = "derivatives.yaml: rsub.Scalar"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::rsub", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [neg(grad)]


def index_list(x: Tensor, dim: int, count: int = 1) -> Tensor:
    """`x[:, :, [n]]`: along `dim`, a list of `count` whole numbers."""
    return apply(Index, x, dim=dim % len(x.shape), count=count)  # type: ignore[no-any-return]


def index_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]`."""
    return apply(IndexRows, x, rows)  # type: ignore[no-any-return]


def every_other(x: Tensor) -> Tensor:
    """`x[..., ::2]`, and `x[..., 1::2]` where the width is even."""
    return apply(EveryOther, x)  # type: ignore[no-any-return]


def stack_last(tensors: list[Tensor]) -> Tensor:
    """`torch.stack(tensors, dim=-1)`."""
    return apply(StackLast, *tensors)  # type: ignore[no-any-return]


def baddbmm(bias: Tensor, a: Tensor, b: Tensor, scaled: bool = True) -> Tensor:
    """`bias.baddbmm(a, b, beta=1, alpha=1 / 8)`, or with an alpha of one."""
    return apply(Baddbmm, bias, a, b, scaled=scaled)  # type: ignore[no-any-return]


def mul_(x: Tensor) -> Tensor:
    """`x *= 2`: `x` must not be used again."""
    return apply(MulScalarInPlace, x)  # type: ignore[no-any-return]


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """`x *= factor` of a tensor that wants no gradient: `x` must not be used again."""
    return apply(MulInPlace, x, factor)  # type: ignore[no-any-return]


def div_(x: Tensor) -> Tensor:
    """`x /= 2`: `x` must not be used again."""
    return apply(DivScalarInPlace, x)  # type: ignore[no-any-return]


def one_minus(x: Tensor) -> Tensor:
    """`1 - x`."""
    return apply(RsubScalar, x)  # type: ignore[no-any-return]
