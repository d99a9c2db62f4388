"""Programs of the ops that recurrent layers need: a convolution over time, running sums, sums over chunks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that everyone uses
from hypothesis import strategies as st
from support.inputs import PLAIN, Draw, draw_float, draw_input, draw_shape
from support.programs import CUDA, Drawn, program, unary, with_dim

EQUATIONS = (
    "bclhn,bcshn->bclsh",
    "bclsh,bcshp->bclhp",
    "bclhn,bclhp->bchpn",
    "bzch,bzhpn->bchpn",
    "bclhn,bchpn->bclhp",
)


def _convolution(draw: Draw) -> Drawn:
    batch, channels, length, kernel = (draw(st.sampled_from(n)) for n in ((1, 2), (2, 5), (4, 7), (2, 4)))
    dtype = draw_float(draw)
    weight = draw_input(draw, (channels, 1, kernel), dtype, layout=PLAIN)
    bias = [draw_input(draw, (channels,), dtype, layout=PLAIN)] if draw(st.booleans()) else []
    x = draw_input(draw, (batch, channels, length), dtype)
    return [x, weight, *bias], {"padding": draw(st.sampled_from((0, kernel - 1)))}


def _run_convolution(ops: Any, x: Any, weight: Any, bias: Any = None, *, padding: int) -> Any:
    return ops.conv1d(x, weight, bias, padding)


def _masked(draw: Draw) -> Drawn:
    shape = draw_shape(draw, 2)
    x = draw_input(draw, shape, draw_float(draw))
    return [x, draw_input(draw, shape[-2:], "bool", False, PLAIN)], {}


def _padded(draw: Draw) -> Drawn:
    """Nothing is one: a slice of an expanded gradient would keep a stride of zero."""
    shape = tuple(draw(st.sampled_from((2, 3, 5))) for _ in range(draw(st.integers(1, 4))))
    dim, amount = draw(st.integers(0, len(shape) - 1)), draw(st.sampled_from((0, 1, 3)))
    return [draw_input(draw, shape, draw_float(draw))], {"dim": dim, "amount": amount}


def _chunks(draw: Draw) -> Drawn:
    equation = draw(st.sampled_from(EQUATIONS))
    sizes = {label: draw(st.sampled_from((1, 2, 3))) for label in "bclhpn"}
    sizes |= {"s": sizes["l"], "z": sizes["c"] + 1}
    dtype = draw_float(draw)
    inputs = equation.split("->")[0].split(",")
    pair = [draw_input(draw, tuple(sizes[label] for label in labels), dtype) for labels in inputs]
    return pair, {"equation": equation}


def _triangle(draw: Draw) -> Drawn:
    batch = draw_shape(draw, 0, 2)
    size, columns = draw(st.sampled_from((2, 4))), draw(st.sampled_from((2, 3)))
    return [draw_input(draw, (*batch, size, n), "float32", layout=PLAIN) for n in (size, columns)], {}


def _cast_layout(draw: Draw) -> Drawn:
    (x,), _ = unary()(draw)
    return [x], {"dtype": draw_float(draw)}


def _filled(draw: Draw) -> Drawn:
    """A zeroed tensor, one of whose slices is set to numbers of any dtype."""
    shape = tuple(draw(st.sampled_from((2, 3, 5))) for _ in range(draw(st.integers(1, 3))))
    x = draw_input(draw, shape, draw_float(draw), layout=PLAIN)
    return [x], {"dim": draw(st.integers(0, len(shape))), "dtype": draw_float(draw)}


def _run_filled(ops: Any, x: Any, dim: int, dtype: str) -> Any:
    base = ops.zeros((*x.shape[:dim], 3, *x.shape[dim:]), ops.dtype(dtype))
    return ops.copy_select(ops.copy_select(base, x, dim), ops.mul(x, 2.0), dim)


program("solve a triangle", "linalg_solve_triangular", _triangle, lambda ops, a, b: ops.solve_triangular(a, b))
program("bounded square root", "SqrtBoundDerivative", unary(), lambda ops, x: ops.sqrt_bound_derivative(x))
program("triu", "triu", unary(2, grad=False), lambda ops, x: ops.triu(x))
program("fill a place", "copy_.select", _filled, _run_filled)
program("to contiguous", "_to_copy", _cast_layout, lambda ops, x, dtype: ops.to_contiguous(x, ops.dtype(dtype)))
program("convolution", "convolution convolution_backward", _convolution, _run_convolution, (CUDA,))
program("softplus", "softplus softplus_backward", unary(), lambda ops, x: ops.softplus(x))
program("running sum", "cumsum.dim flip", with_dim(), lambda ops, x, dim: ops.running_sum(x, dim))
program("clamp range", "clamp.range ge.Scalar", unary(), lambda ops, x: ops.clamp_range(x))
program(
    "logical_not",
    "bitwise_not",
    lambda draw: ([draw_input(draw, draw_shape(draw), "bool", False)], {}),
    lambda ops, x: ops.logical_not(x),
)
program("masked fill with a number", "masked_fill.Scalar", _masked, lambda ops, x, m: ops.masked_fill_value(x, m))
program(
    "pad a dimension",
    "constant_pad_nd.dim",
    _padded,
    lambda ops, x, dim, amount: ops.pad_dimension(x, dim, amount),
)
program("repeat along", "clone", with_dim(), lambda ops, x, dim: ops.repeat_along(x, dim, 2))
program("einsum", "bmm", _chunks, lambda ops, a, b, equation: ops.einsum(equation, a, b))


class SqrtBoundDerivative(torch.autograd.Function):
    """As RecurrentGemma has it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        clipped = torch.clip(4.0 * x, min=1e-6)
        return grad / torch.sqrt(clipped)


class TorchRecurrentOps:
    """The same in real PyTorch."""

    triu = staticmethod(torch.triu)
    sqrt_bound_derivative = staticmethod(SqrtBoundDerivative.apply)
    solve_triangular = staticmethod(lambda a, b: torch.linalg.solve_triangular(a, b, upper=False, unitriangular=True))
    softplus, einsum = map(staticmethod, (F.softplus, torch.einsum))
    running_sum = staticmethod(lambda x, dim=-1: x.cumsum(dim))
    clamp_range = staticmethod(lambda x: torch.clamp(x, min=0.0, max=float("inf")))
    logical_not = staticmethod(lambda x: ~x)
    masked_fill_value = staticmethod(lambda x, mask: x.masked_fill(mask, 0))
    repeat_along = staticmethod(lambda x, dim, repeats: x.repeat_interleave(repeats, dim, output_size=x.shape[dim] * 2))
    conv1d = staticmethod(lambda x, w, bias, padding=0: F.conv1d(x, w, bias, padding=padding, groups=x.shape[1]))

    to_contiguous = staticmethod(lambda x, dtype: x.to(dtype, memory_format=torch.contiguous_format))

    @staticmethod
    def copy_select(base: torch.Tensor, source: torch.Tensor, dim: int) -> torch.Tensor:
        base.select(dim, 0).copy_(source)
        return base

    @staticmethod
    def pad_dimension(x: torch.Tensor, dim: int, amount: int) -> torch.Tensor:
        pads = [0, 0] * x.ndim
        pads[2 * (x.ndim - 1 - dim % x.ndim) + 1] = amount
        return F.pad(x, pads)
