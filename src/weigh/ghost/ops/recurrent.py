"""What recurrent layers need: a convolution over time, softplus, running sums, sums over chunks written as einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weigh.dims import Shape, Size, product
from weigh.dtypes import BOOL
from weigh.ghost.ops.creation import new_like, scalar_tensor
from weigh.ghost.ops.indexing import where
from weigh.ghost.ops.matmul import bmm
from weigh.ghost.ops.pointwise import div, elementwise, like, mul, sqrt
from weigh.ghost.ops.table import CUDA_FP32, LOWER, Op, apply
from weigh.ghost.ops.views import clone_contiguous, narrow, permute, reshape, unsqueeze, view
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty


class Convolution(Op):
    """`F.conv1d(x, weight, bias, stride=..., padding=..., groups=...)`: weight (out, in / groups, width). Saves both.

    As PyTorch's own depthwise kernel runs. Not modelled: the copy of an input that is not contiguous, which lives
    inside the kernel, and cuDNN, which a GPU may take where the channels lie last: its output keeps that order, and it
    has a workspace.
    """

    name = "aten::convolution"
    source = "derivatives.yaml: convolution"
    autocast = LOWER

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, stride: int) -> Tensor:
        if ctx:
            ctx.save(x, weight)
        length = x.shape[-1] + 2 * padding - (weight.shape[-1] - 1)
        length = (length + (stride - 1)) // stride if stride > 1 else length
        return empty((*x.shape[:-2], weight.shape[0], length), x.dtype, "aten::convolution")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        x, weight = ctx.unpack()
        return apply(ConvolutionBackward, grad, x, weight, needs=tuple(ctx.needs))  # type: ignore[no-any-return]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * (2 * tensors[1].shape[-1] * tensors[1].shape[-2])  # type: ignore[no-any-return]


class ConvolutionBackward(Op):
    """Of input, weight and bias, those that are wanted."""

    name = "aten::convolution_backward"

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, *, needs: tuple[bool, bool, bool]
    ) -> list[Tensor | None]:
        shapes = (x.shape, weight.shape, weight.shape[:1])
        op = "aten::convolution_backward"
        return [empty(shape, grad.dtype, op) if need else None for shape, need in zip(shapes, needs, strict=True)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel * (4 * tensors[2].shape[-1])  # type: ignore[no-any-return]


class Softplus(Op):
    """`F.softplus(x)`, whose gradient is one kernel over the gradient and the input."""

    name = "aten::softplus"
    source = "derivatives.yaml: softplus"
    autocast = CUDA_FP32

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx:
            ctx.save(x)
        return like("aten::softplus", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        return [apply(SoftplusBackward, grad, x)]


class SoftplusBackward(Op):
    """One kernel."""

    name = "aten::softplus_backward"

    @staticmethod
    def forward(ctx: Any, grad: Tensor, saved: Tensor) -> Tensor:
        return elementwise("aten::softplus_backward", grad, saved)


class RunningSum(Op):
    """`x.cumsum(dim)`. cumsum_backward: flipped, summed, flipped, but for one element along `dim` or in all."""

    name = "aten::cumsum.dim"
    source = "FunctionsManual.cpp, cumsum_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim
        return empty(x.shape, x.dtype, "aten::cumsum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        if grad.shape[ctx.meta] == 1:
            return [grad]
        flipped = flip(grad)
        total = running_sum(flipped, ctx.meta)
        return [flip(total)]


class Flip(Op):
    """`x.flip(dim)`."""

    name = "aten::flip"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::flip", x)

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class ClampRange(Op):
    """`torch.clamp(x, min=..., max=...)` of two numbers: `where((x >= min).logical_and_(x <= max), grad, 0)`."""

    name = "aten::clamp.range"
    source = "FunctionsManual.cpp, clamp_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx:
            ctx.save(x)
        return like("aten::clamp", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        zero = scalar_tensor(grad.dtype)
        above = apply(Compare, x)
        below = apply(Compare, x)
        result = where(above, grad, zero)
        del above, below, zero
        return [result]


class Compare(Op):
    """`x >= n`, `x <= n`."""

    name = "aten::ge.Scalar"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::ge", x, BOOL)


class BitwiseNot(Op):
    """`~mask`."""

    name = "aten::bitwise_not"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::bitwise_not", x)


class MaskedFillValue(Op):
    """`x.masked_fill(mask, number)`. Saves the mask; the gradient is `grad.masked_fill(mask, 0)`."""

    name = "aten::masked_fill.Scalar"
    source = "derivatives.yaml: masked_fill.Scalar"

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        if ctx:
            ctx.save(mask)
        return empty(x.shape, x.dtype, "aten::masked_fill")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (mask,) = ctx.unpack()
        return [masked_fill_value(grad, mask), None]


class PadDimension(Op):
    """`F.pad` with zeros along one dimension: a copy, in the order of images with their channels last where `x` is so.

    Where there is nothing to add, a clone. ConstantPadNdBackward0: the gradient narrowed by a negative pad, which
    copies it.
    """

    name = "aten::constant_pad_nd.dim"
    source = "aten/src/ATen/native/PadNd.cpp, constant_pad_nd"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dim: int, amount: Size) -> Tensor:
        if ctx:
            ctx.meta = dim
        if amount == 0:
            return new_like(x, "aten::constant_pad_nd")
        shape = (*x.shape[:dim], x.shape[dim] + amount, *x.shape[dim + 1 :])
        strides = None
        if channels_last(x):
            _, channels, height, width = shape
            strides = (channels * height * width, 1, channels * width, channels)
        return empty(shape, x.dtype, "aten::constant_pad_nd", strides)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [new_like(narrow(grad, ctx.meta, ctx.inputs[0][0][ctx.meta]), "aten::constant_pad_nd")]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def channels_last(x: Tensor) -> bool:
    """Laid out as an image with its channels last (MemoryFormat.h, `is_channels_last_strides_2d`)."""
    if x.strides is None or len(x.shape) != 4 or x.strides[1] == 0:
        return False
    least: Size = 0
    for dim in (1, 3, 2, 0):
        if x.strides[dim] < least or (dim == 0 and least == x.strides[1]):
            return False
        least = x.strides[dim] * x.shape[dim]
    return True


class SqrtBoundDerivative(Op):
    """RecurrentGemma's own square root: saves its input, of which four times, clipped, bounds the gradient."""

    name = "SqrtBoundDerivative"
    source = "transformers/models/recurrent_gemma/modeling_recurrent_gemma.py, class SqrtBoundDerivative"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx:
            ctx.save(x)
        return like("aten::sqrt", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        clipped_x_times_4 = clamp_range(mul(x, 4.0))
        return [div(grad, sqrt(clipped_x_times_4))]


def sqrt_bound_derivative(x: Tensor) -> Tensor:
    """`SqrtBoundDerivative.apply(x)`."""
    return apply(SqrtBoundDerivative, x)  # type: ignore[no-any-return]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0, stride: int = 1) -> Tensor:
    """`F.conv1d(x, weight, bias, stride, padding, groups=in / i)`: (batch, in, length) and (out, i, k)."""
    return apply(Convolution, x, weight, bias, padding=padding, stride=stride)  # type: ignore[no-any-return]


def softplus(x: Tensor) -> Tensor:
    """`F.softplus(x)`."""
    return apply(Softplus, x)  # type: ignore[no-any-return]


def running_sum(x: Tensor, dim: int = -1) -> Tensor:
    """`x.cumsum(dim)`, with a gradient."""
    return apply(RunningSum, x, dim=dim % len(x.shape))  # type: ignore[no-any-return]


def flip(x: Tensor) -> Tensor:
    """`x.flip(dim)`, outside autograd."""
    return apply(Flip, x)  # type: ignore[no-any-return]


def clamp_range(x: Tensor) -> Tensor:
    """`torch.clamp(x, min=..., max=...)` of two numbers."""
    return apply(ClampRange, x)  # type: ignore[no-any-return]


def logical_not(x: Tensor) -> Tensor:
    """`~x`."""
    return apply(BitwiseNot, x)  # type: ignore[no-any-return]


def masked_fill_value(x: Tensor, mask: Tensor) -> Tensor:
    """`x.masked_fill(mask, number)`, where the mask is no larger than `x`."""
    return apply(MaskedFillValue, x, mask)  # type: ignore[no-any-return]


def pad_dimension(x: Tensor, dim: int, amount: Size) -> Tensor:
    """`F.pad` with zeros at one end of one dimension."""
    return apply(PadDimension, x, dim=dim % len(x.shape), amount=amount)  # type: ignore[no-any-return]


def repeat_along(x: Tensor, dim: int, repeats: int) -> Tensor:
    """`x.repeat_interleave(repeats, dim, output_size=...)`: an expanded view, copied, even for one repeat."""
    shape = x.shape
    expanded = x.unsqueeze(dim + 1).expand(*shape[: dim + 1], repeats, *shape[dim + 1 :])
    return clone_contiguous(expanded).view(*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :])


def einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`torch.einsum(equation, a, b)` of two tensors, summed over one label (Linear.cpp, `einsum`, `sumproduct_pair`).

    Both are permuted to the labels of the output and the summed one, the labels that both have become the batch of a
    `bmm`, and its output is permuted back.
    """
    if state.autocast is not None:  # the casts live until the call returns
        (a,), (b,) = state.autocast.cast(LOWER, (a,)), state.autocast.cast(LOWER, (b,))  # type: ignore[assignment]
    inputs, labels = equation.split("->")
    first, second = inputs.split(",")
    order = labels + next(c for c in first if c not in labels)
    a, b = _aligned(a, first, order), _aligned(b, second, order)
    out = _sumproduct_pair(a, b)
    return view(out, out.shape[:-1])


def _aligned(x: Tensor, labels: str, order: str) -> Tensor:
    """Permuted to the order of all labels, a dimension of one for each label that is not there."""
    missing = [c for c in order if c not in labels]
    for _ in missing:
        x = unsqueeze(x, -1)
    places = [*labels, *missing]
    return permute(x, [places.index(c) for c in order])


def _sumproduct_pair(left: Tensor, right: Tensor) -> Tensor:
    """Summed over the last dimension, which is kept. What counts is not who has a label, but whose size is not one."""
    last = left.ndim - 1
    if left.shape[last] == 1 or right.shape[last] == 1:
        return mul(left, right)
    mine = [left.shape[d] != 1 for d in range(last)]
    theirs = [right.shape[d] != 1 for d in range(last)]
    sizes = [(left if mine[d] else right).shape[d] for d in range(last)]
    lro = [d for d in range(last) if mine[d] and theirs[d]]
    lo = [d for d in range(last) if mine[d] and not theirs[d]]
    ro = [d for d in range(last) if not mine[d]]
    if lo and ro and ro[-1] < lo[0]:  # so that the product comes out in the order of the output
        left, right, lo, ro = right, left, ro, lo
    sizes.append(1)

    def count(dims: Sequence[int]) -> Size:
        return product(tuple(sizes[d] for d in dims))

    summed = left.shape[last]
    flat_left = reshape(permute(left, [*lro, *lo, last, *ro]), (count(lro), count(lo), summed))
    flat_right = reshape(permute(right, [*lro, last, *ro, *lo]), (count(lro), summed, count(ro)))
    places = [*lro, *lo, last, *ro]
    out_size: Shape = tuple(sizes[d] for d in places)
    result = view(bmm(flat_left, flat_right), out_size)
    return permute(result, [places.index(d) for d in range(last + 1)])
