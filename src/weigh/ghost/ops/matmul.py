"""Matrix products, and `linear` as transformers calls it."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size, product
from weigh.ghost.ops.pointwise import add, add_
from weigh.ghost.ops.table import LOWER, Op, apply
from weigh.ghost.ops.views import contiguous, reshape, unsafe_view, view
from weigh.ghost.state import state
from weigh.ghost.tensor import ShapeError, Tensor, empty


def _column_major(x: Tensor) -> bool:
    """A matrix that is stored as its transpose."""
    return x.strides is not None and x.strides[0] == 1 and x.strides[1] == x.shape[0]


def _left_gradient(grad: Tensor, right: Tensor, left_column_major: bool) -> Tensor:
    """FunctionsManual.cpp, `mm_mat1_backward`: made in the layout of the matrix it belongs to."""
    if left_column_major:
        return mm(right, grad.t()).t()
    return mm(grad, right.t())


def _right_gradient(grad: Tensor, left: Tensor, right_column_major: bool) -> Tensor:
    """FunctionsManual.cpp, `mm_mat2_backward`."""
    if right_column_major:
        return mm(grad.t(), left).t()
    return mm(left.t(), grad)


class Mm(Op):
    """`torch.mm`. Saves each factor that the other's gradient needs; the second factor's gradient is made first."""

    name = "aten::mm"
    source = "derivatives.yaml: mm"
    autocast = LOWER

    @classmethod
    def forward(cls, ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            cls.keep(ctx, a, b)
        return empty((a.shape[0], b.shape[1]), a.dtype, "aten::mm")

    @staticmethod
    def keep(ctx: Any, a: Tensor, b: Tensor) -> None:
        """What is saved for the backward pass."""
        ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        ctx.meta = _column_major(a), _column_major(b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        right = _right_gradient(grad, a, ctx.meta[1]) if ctx.needs[1] else None
        return [_left_gradient(grad, b, ctx.meta[0]) if ctx.needs[0] else None, right]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[0].shape[-1])  # type: ignore[no-any-return]


class Addmm(Op):
    """`torch.addmm(bias, a, b)`. The first factor's gradient is made first; the bias's is the incoming one, summed."""

    name = "aten::addmm"
    source = "derivatives.yaml: addmm"
    autocast = LOWER

    @staticmethod
    def forward(ctx: Any, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[2] else None, b if ctx.needs[1] else None)
            ctx.meta = _column_major(a), _column_major(b)
        return empty((a.shape[0], b.shape[1]), a.dtype, "aten::addmm")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        left = _left_gradient(grad, b, ctx.meta[0]) if ctx.needs[1] else None
        right = _right_gradient(grad, a, ctx.meta[1]) if ctx.needs[2] else None
        return [grad if ctx.needs[0] else None, left, right]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[1].shape[-1] + 1)  # type: ignore[no-any-return]


class Bmm(Op):
    """`torch.bmm`."""

    name = "aten::bmm"
    source = "derivatives.yaml: bmm"
    autocast = LOWER

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype, "aten::bmm")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        right = bmm(a.transpose(1, 2), grad) if ctx.needs[1] else None
        return [bmm(grad, b.transpose(1, 2)) if ctx.needs[0] else None, right]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[0].shape[-1])  # type: ignore[no-any-return]


def _check(left: Size, right: Size, what: str) -> None:
    if left is not right and left != right:
        raise ShapeError(f"{what}: inner sizes {left} and {right} differ")


def mm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.mm(a, b)`: (n, k) x (k, m) -> (n, m)."""
    _check(a.shape[1], b.shape[0], "mm")
    return apply(Mm, a, b)  # type: ignore[no-any-return]


def addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.addmm(bias, a, b)`."""
    _check(a.shape[1], b.shape[0], "addmm")
    return apply(Addmm, bias, a, b)  # type: ignore[no-any-return]


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.bmm(a, b)`: (b, n, k) x (b, k, m) -> (b, n, m)."""
    _check(a.shape[2], b.shape[1], "bmm")
    return apply(Bmm, a, b)  # type: ignore[no-any-return]


def _cast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Autocast of a composite op: its inputs are cast once, before it splits into parts."""
    assert state.autocast is not None
    return state.autocast.cast(LOWER, tensors)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`torch.matmul`: the last two dimensions multiplied, the others broadcast (LinearAlgebra.cpp, `_matmul_impl`).

    A matrix on either side is not expanded where the other can be folded into a matrix, or where the matrix wants a
    gradient (`should_fold`); nor is a batch of one that wants a gradient, or any batch of one under a dispatch mode.
    """
    if state.autocast is not None:
        return _matmul(*_cast(a, b))  # what is cast lives until the call returns, as does what it is cast from
    return _matmul(a, b)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    dims = len(a.shape), len(b.shape)
    if dims == (2, 2):
        return mm(a, b)
    if dims[1] == 2 and (b.requires_grad or _rows_in_order(a)):
        flat = reshape(a, (product(a.shape[:-1]), a.shape[-1]))
        return unsafe_view(mm(flat, b), (*a.shape[:-1], b.shape[-1]))
    if dims[0] == 2 and a.requires_grad:
        turned = b.transpose(-2, -1)
        flat = reshape(turned, (product(turned.shape[:-1]), turned.shape[-1]))
        out = unsafe_view(mm(flat, a.t()), (*turned.shape[:-1], a.shape[0]))
        return contiguous(out.transpose(-2, -1))
    if dims == (3, 3) and a.shape[0] is not b.shape[0] and a.shape[0] != b.shape[0]:
        if a.shape[0] == 1 and (a.requires_grad or state.traced):
            return _matmul(a.squeeze(0), b)
        if b.shape[0] == 1 and (b.requires_grad or state.traced):
            return _matmul(a, b.squeeze(0))
    batch = _broadcast_batch(a.shape[:-2], b.shape[:-2])
    count = product(batch)
    left = reshape(_expand(a, batch), (count, a.shape[-2], a.shape[-1]))
    right = reshape(_expand(b, batch), (count, b.shape[-2], b.shape[-1]))
    out = bmm(left, right)
    return unsafe_view(out, (*batch, a.shape[-2], b.shape[-1]))


def _rows_in_order(x: Tensor) -> bool:
    """All dimensions but the last can be seen as one, by strides alone: `should_fold` counts sizes of one too."""
    strides = x.strides
    if strides is None:
        return True
    return all(strides[i] == strides[i + 1] * x.shape[i + 1] for i in range(len(strides) - 2))


def _expand(x: Tensor, batch: Shape) -> Tensor:
    if x.shape[:-2] == batch:
        return x
    return x.expand(*batch, *x.shape[-2:])


def _broadcast_batch(left: Shape, right: Shape) -> Shape:
    from weigh.ghost.ops.pointwise import broadcast

    return broadcast(left, right)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)` (Linear.cpp).

    One `addmm` over the flattened input; `matmul` where there is no bias; and `matmul`, to which the bias is added (in
    place, but for a dispatch mode), where the input is not contiguous.
    """
    if state.autocast is not None:
        return _linear(*_cast(x, weight, bias))
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    turned = weight.t()
    turned.requires_grad = weight.requires_grad  # views of a leaf say so even under no_grad, and `should_fold` asks
    if bias is None:
        return _matmul(x, turned)
    if len(x.shape) == 2:
        return addmm(bias, x, turned)
    if x.strides is not None:
        return (add if state.traced else add_)(_matmul(x, turned), bias)
    flat = reshape(x, (product(x.shape[:-1]), x.shape[-1]))
    return view(addmm(bias, flat, turned), (*x.shape[:-1], weight.shape[0]))
