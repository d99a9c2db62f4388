"""What mixtures of experts do: choose, sort by expert, multiply group by group, divide and clamp what came out."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import BOOL, INT64
from weigh.ghost.ops.creation import scalar_tensor
from weigh.ghost.ops.indexing import gather, where
from weigh.ghost.ops.pointwise import Div, like
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty


class ValueSelectingBackward(Op):
    """Where the values were: zeros with the gradients put in, of `topk` and of `max`.

    A second tensor where tensors are seen by a dispatch mode.
    """

    name = "aten::scatter"
    source = "FunctionsManual.cpp, value_selecting_reduction_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, *, shape: Shape) -> Tensor:
        zeros = empty(shape, grad.dtype, "aten::new_zeros")
        return empty(shape, grad.dtype, "aten::scatter") if state.traced else zeros


class GatherBackward(ValueSelectingBackward):
    """Where the values were gathered: zeros with the gradients added in."""

    name = "aten::scatter_add"
    source = "FunctionsManual.cpp, gather_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, *, shape: Shape) -> Tensor:
        zeros = empty(shape, grad.dtype, "aten::new_zeros")
        return empty(shape, grad.dtype, "aten::scatter_add") if state.traced else zeros


class MaxDim(Op):
    """`x.max(dim=-1, keepdim=True)`: values and int64 indices, which are saved."""

    name = "aten::max"
    source = "derivatives.yaml: max.dim"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> list[Tensor]:
        shape = (*x.shape[:-1], 1)
        values, indices = empty(shape, x.dtype, "aten::max"), empty(shape, INT64, "aten::max")
        if ctx:
            ctx.save_output(indices)
        return [values, indices]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (indices,) = ctx.unpack()
        return [apply(ValueSelectingBackward, grad, indices, shape=ctx.inputs[0][0])]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class Sort(Op):
    """`torch.sort(x)` of whole numbers: values and int64 indices."""

    name = "aten::sort"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> list[Tensor]:
        return [empty(x.shape, x.dtype, "aten::sort"), empty(x.shape, INT64, "aten::sort")]


class FloorDivide(Op):
    """`x // n` of whole numbers."""

    name = "aten::floor_divide"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::floor_divide", x)


class Histc(Op):
    """`torch.histc(x, bins=n)`: counts in the dtype of what is counted."""

    name = "aten::histc"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, bins: int) -> Tensor:
        return empty((bins,), x.dtype, "aten::histc")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class EmptyLike(Op):
    """`torch.empty_like(x)`."""

    name = "aten::empty_like"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::empty_like", x)

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class GroupedMm(Op):
    """`F.grouped_mm(a, b, offs=...)`: rows (S, K) of `a` times the matrix of their group in `b` (E, K, N).

    Two matrices (M, S) and (S, N) make one product for each group of S: (E, M, N), the gradient of `b`, which is made
    first and in the layout of `b`.
    """

    name = "aten::_grouped_mm"
    source = "derivatives.yaml: _grouped_mm; FunctionsManual.cpp, _grouped_mm_mat1_backward, _grouped_mm_mat2_backward"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
        if ctx:
            ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None, offsets)
            ctx.meta = b.strides is not None and b.strides[1] == 1 and b.strides[2] == b.shape[1]
        groups = () if len(b.shape) == 3 else offsets.shape
        return empty((*groups, a.shape[0], b.shape[-1]), a.dtype, "aten::_grouped_mm")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b, offsets = ctx.unpack()
        right = None
        if ctx.needs[1] and ctx.meta:
            right = grouped_mm(grad.t(), a, offsets).transpose(1, 2)
        elif ctx.needs[1]:
            right = grouped_mm(a.t(), grad, offsets)
        return [grouped_mm(grad, b.transpose(1, 2), offsets) if ctx.needs[0] else None, right, None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        a, b = tensors[0], tensors[1]
        return a.numel * (2 * b.shape[-1])  # type: ignore[no-any-return]


class DivInPlace(Div):
    """`a /= b`, where `a` is nobody else's: the same storage, and a copy of what stood there where `b` wants it."""

    name = "aten::div_.Tensor"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(like("aten::clone", a) if ctx.needs[1] else None, b)
        return a.alias()


class ClampNumbers(Op):
    """`x.clamp(min=..., max=...)` with one number or two.

    clamp_backward: `where((x >= min).logical_and_(x <= max), grad, 0)`.
    """

    name = "aten::clamp.Scalar"
    source = "derivatives.yaml: clamp; FunctionsManual.cpp, clamp_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, both: bool) -> Tensor:
        if ctx:
            ctx.save(x)
            ctx.meta = both
        return like("aten::clamp", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        zero = scalar_tensor(grad.dtype)
        above = like("aten::ge", x, BOOL) if ctx.meta else None
        below = like("aten::le", x, BOOL)
        return [where(below if above is None else above, grad, zero)]


class ScatterSource(Op):
    """`x.scatter_(1, index, source)` into a tensor that wants no gradient: in place. The source's is gathered."""

    name = "aten::scatter_.src"
    source = "derivatives.yaml: scatter.src"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        if ctx:
            ctx.save(index)
        return x.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (index,) = ctx.unpack()
        return [None, None, gather(grad, index, index.shape)]


class BitwiseNot(Op):
    """`~x`."""

    name = "aten::bitwise_not"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::bitwise_not", x)


def max_last(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x.max(dim=-1, keepdim=True)`: values and indices."""
    values, indices = apply(MaxDim, x)
    return values, indices


def sort(x: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.sort(x)`: values and indices."""
    values, indices = apply(Sort, x)
    return values, indices


def floor_divide(x: Tensor) -> Tensor:
    """`x // n`."""
    return apply(FloorDivide, x)  # type: ignore[no-any-return]


def histc(x: Tensor, bins: int) -> Tensor:
    """`torch.histc(x, bins=bins)`, shape (bins,)."""
    return apply(Histc, x, bins=bins)  # type: ignore[no-any-return]


def empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`."""
    return apply(EmptyLike, x)  # type: ignore[no-any-return]


def index_put_(x: Tensor, index: Tensor, source: Tensor) -> Tensor:  # noqa: ARG001  PyTorch's signature
    """`x[index] = source`: in place, nothing new."""
    return x


def scatter_(x: Tensor, index: Tensor) -> Tensor:  # noqa: ARG001  PyTorch's signature
    """`x.scatter_(1, index, value)`: in place, nothing new."""
    return x


def scatter_source_(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`x.scatter_(1, index, source)`: `x` must not be used again."""
    return apply(ScatterSource, x, index, source)  # type: ignore[no-any-return]


def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """`F.grouped_mm(a, b, offs=offsets)`."""
    return apply(GroupedMm, a, b, offsets)  # type: ignore[no-any-return]


def divide_(a: Tensor, b: Tensor) -> Tensor:
    """`a /= b`: `a` must not be used again."""
    return apply(DivInPlace, a, b)  # type: ignore[no-any-return]


def clamp_numbers(x: Tensor, both: bool) -> Tensor:
    """`x.clamp(min=..., max=...)`; not both: only one of the two."""
    return apply(ClampNumbers, x, both=both)  # type: ignore[no-any-return]


def bitwise_not(x: Tensor) -> Tensor:
    """`~x`."""
    return apply(BitwiseNot, x)  # type: ignore[no-any-return]
