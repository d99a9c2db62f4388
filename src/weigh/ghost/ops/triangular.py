"""Triangular matrices: solving for them, and cutting them out."""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.ghost.ops.matmul import matmul
from weigh.ghost.ops.pointwise import neg, tril
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, contiguous_strides, empty


class SolveTriangular(Op):
    """`torch.linalg.solve_triangular(a, b, upper=..., unitriangular=True)` of matrices in equal batches.

    The solution is laid out column by column. Saves `a` and the solution: the gradient of `b` solves the transposed
    system, that of `a` is minus its product with the solution, of which one triangle is kept. Not modelled: copies of
    matrices that are laid out otherwise than cuBLAS wants them, which live inside the call.
    """

    name = "aten::linalg_solve_triangular"
    source = "derivatives.yaml: linalg_solve_triangular; FunctionsManual.cpp, linalg_solve_triangular_backward"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        shape = (*b.shape[:-2], b.shape[-1], b.shape[-2])
        strides = contiguous_strides(shape)
        out = empty(b.shape, b.dtype, "aten::linalg_solve_triangular", (*strides[:-2], strides[-1], strides[-2]))
        if ctx:
            ctx.save(a)
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, solution = ctx.unpack()
        grad_b = solve_triangular(a.transpose(-2, -1), grad)
        if not ctx.needs[0]:
            return [None, grad_b]
        product = matmul(grad_b, solution.transpose(-2, -1))
        grad_a = neg(product)
        del product
        grad_a = tril(grad_a)
        return [grad_a, grad_b if ctx.needs[1] else None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return out.numel * tensors[0].shape[-1]  # type: ignore[no-any-return]


class Triu(Op):
    """`torch.triu(x)`, outside autograd."""

    name = "aten::triu"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, "aten::triu")


def solve_triangular(a: Tensor, b: Tensor) -> Tensor:
    """`torch.linalg.solve_triangular(a, b, upper=..., unitriangular=True)`."""
    return apply(SolveTriangular, a, b)  # type: ignore[no-any-return]


def triu(x: Tensor) -> Tensor:
    """`x.triu(n)`."""
    return apply(Triu, x)  # type: ignore[no-any-return]
