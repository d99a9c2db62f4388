"""What makes whole matrices of a few numbers: put at places, stacked along the diagonal, solved for; and their norm."""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, INT32
from weigh.ghost.ops.matmul import matmul
from weigh.ghost.ops.pointwise import div, like, mul, neg
from weigh.ghost.ops.reduction import sum_to_size
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.ops.views import squeeze, unsafe_view
from weigh.ghost.tensor import Tensor, empty


class IndexPut(Op):
    """`x.index_put((rows, columns), values)` of an `x` that wants no gradient: a copy. That of the values is picked."""

    name = "aten::index_put.values"
    source = "derivatives.yaml: index_put"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        if ctx:
            ctx.save(rows, columns)
            ctx.meta = (*x.shape[:-2], values.shape[-1])
        return cls.result(x)

    @staticmethod
    def result(x: Tensor) -> Tensor:
        """Where they are put."""
        return like("aten::index_put", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        ctx.unpack()
        picked = empty(ctx.meta, grad.dtype, "aten::index")
        return [None, None, None, sum_to_size(picked, ctx.inputs[3][0])]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class IndexPutInPlace(IndexPut):
    """`x[..., rows, columns] = values`, where `x` is nobody else's and wants no gradient: the same storage."""

    name = "aten::index_put_.values"

    @staticmethod
    def result(x: Tensor) -> Tensor:
        """Where they are put."""
        return x.alias()


class Norm(Op):
    """`torch.linalg.vector_norm(x)` of everything, (). Saves both.

    linalg_vector_norm_backward: `grad * (x / norm).masked_fill_(norm == 0, 0)`.
    """

    name = "aten::linalg_vector_norm.all"
    source = "derivatives.yaml: linalg_vector_norm"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = empty((), x.dtype, "aten::linalg_vector_norm")
        if ctx:
            ctx.save(x)
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        x, norm = ctx.unpack()
        quotient = div(x, norm)
        zero = empty((), BOOL, "aten::eq")
        gradient = mul(grad, quotient)
        del quotient, x, norm, zero
        return [gradient]


class BlockDiagonal(Op):
    """`torch.block_diag(*blocks)` of the n blocks of (n, a, b): (n a, n b). Their gradients are views, stacked."""

    name = "aten::block_diag"
    source = "derivatives.yaml: block_diag, unbind"

    @staticmethod
    def forward(ctx: Any, blocks: Tensor) -> Tensor:
        count, rows, columns = blocks.shape
        return empty((count * rows, count * columns), blocks.dtype, "aten::block_diag")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [empty(ctx.inputs[0][0], grad.dtype, "aten::stack")]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class AddScaledInPlace(Op):
    """`a.add_(b, alpha=2.0)`: the same storage. The gradient of `b` is the incoming one, scaled."""

    name = "aten::add_.scaled"
    source = "derivatives.yaml: add.Tensor; FunctionsManual.cpp, maybe_multiply"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [grad if ctx.needs[0] else None, mul(grad, 2.0) if ctx.needs[1] else None]


class Solve(Op):
    """`torch.linalg.solve(a, b, left=False)` of square matrices, or batches. Saves `a`, its factors and the result.

    linalg_solve_backward: the gradient of `b` is solved by the same factors, that of `a` is minus its product with the
    result. What the solver takes inside the call is not counted.
    """

    name = "aten::_linalg_solve_ex"
    source = "derivatives.yaml: _linalg_solve_ex; FunctionsManual.cpp, linalg_solve_backward"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        out = empty(b.shape, b.dtype, "aten::_linalg_solve_ex")
        factors = empty(a.shape, a.dtype, "aten::_linalg_solve_ex")
        pivots = empty(a.shape[:-1], INT32, "aten::_linalg_solve_ex")
        info = empty(a.shape[:-2], INT32, "aten::_linalg_solve_ex")
        del info
        if ctx:
            ctx.save(a, factors, pivots)
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        _a, _factors, _pivots, result = ctx.unpack()
        grad_b = empty(grad.shape, grad.dtype, "aten::linalg_lu_solve")
        grad_a = None
        if ctx.needs[0]:
            product = matmul(result.transpose(-2, -1), grad_b)
            grad_a = neg(product)
            del product
        return [grad_a, grad_b if ctx.needs[1] else None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 3 * out.numel * tensors[0].shape[-1]  # type: ignore[no-any-return]


def add_scaled_(a: Tensor, b: Tensor) -> Tensor:
    """`a.add_(b, alpha=2.0)`: `a` must not be used again."""
    return apply(AddScaledInPlace, a, b)  # type: ignore[no-any-return]


def solve(a: Tensor, b: Tensor) -> Tensor:
    """`torch.linalg.solve(a, b, left=False)`."""
    return apply(Solve, a, b)  # type: ignore[no-any-return]


def put_at(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """`x.index_put((rows, columns), values)`; `x` wants no gradient."""
    return apply(IndexPut, x, rows, columns, values)  # type: ignore[no-any-return]


def put_at_(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """`x[:, rows, columns] = values`: `x` must not be used again. Values of one row are all rows'."""
    if values.shape[0] == 1:
        values = squeeze(values, 0)
    return apply(IndexPutInPlace, x, rows, columns, values)  # type: ignore[no-any-return]


def norm(x: Tensor) -> Tensor:
    """`torch.norm(x)`."""
    return apply(Norm, x)  # type: ignore[no-any-return]


def block_diagonal(blocks: Tensor) -> Tensor:
    """`torch.block_diag(*torch.unbind(blocks))`."""
    return apply(BlockDiagonal, blocks)  # type: ignore[no-any-return]


def kron(a: Tensor, b: Tensor) -> Tensor:
    """`torch.kron(a, b)` of two matrices (LinearAlgebra.cpp, `KronImpl`)."""
    (rows, columns), (inner_rows, inner_columns) = a.shape, b.shape
    left = a.reshape(rows, 1, columns, 1)
    right = b.reshape(1, inner_rows, 1, inner_columns)
    return unsafe_view(mul(left, right), (rows * inner_rows, columns * inner_columns))
