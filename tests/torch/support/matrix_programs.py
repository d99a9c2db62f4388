"""Programs over what makes whole matrices of a few numbers (`weigh.ghost.ops.matrices`)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from support.inputs import PLAIN, Draw, draw_float, draw_input, draw_shape
from support.programs import Drawn, program, unary

SIZES = st.integers(2, 6)


def _triangle(draw: Draw) -> Drawn:
    """The numbers above the diagonals of some matrices: of one, of each, or the same for all."""
    size, batch = draw(SIZES), draw(st.sampled_from((None, 1, 3)))
    shape = (size * (size - 1) // 2,)
    values = draw_input(draw, shape if batch is None else (batch, *shape), draw_float(draw), True, PLAIN)
    places = [draw_input(draw, shape, "int64", False, PLAIN) for _ in ("rows", "columns")]
    return [*places, values], {"size": size, "batch": batch}


def _put(ops: Any, rows: Any, columns: Any, values: Any, size: int, batch: int | None) -> Any:
    if batch is None:
        return ops.put_at(ops.zeros((size, size), values.dtype), rows, columns, values)
    return ops.put_at_(ops.zeros((_matrices_of(batch), size, size), values.dtype), rows, columns, values)


def _matrices_of(batch: int) -> int:
    """Values of one row are put into every matrix there is."""
    return batch if batch > 1 else 2


def _square_pair(draw: Draw) -> Drawn:
    size, batch = draw(SIZES), draw(st.sampled_from(((), (1,), (4,))))
    return [draw_input(draw, (*batch, size, size), "float32", None, PLAIN) for _ in "ab"], {}


def _solve(ops: Any, a: Any, b: Any) -> Any:
    """Drawn matrices are zeros on the CPU; the identity can be solved for."""
    return ops.solve(ops.add(ops.eye(a.shape[-1], ops.dtype("float32")), a), b)


def _matrices(draw: Draw) -> Drawn:
    dtype = draw_float(draw)
    return [draw_input(draw, draw_shape(draw, 2, 2), dtype, layout=PLAIN) for _ in "ab"], {}


def _blocks(draw: Draw) -> Drawn:
    return [draw_input(draw, (draw(SIZES), draw(SIZES), draw(SIZES)), draw_float(draw), layout=PLAIN)], {}


def _same_pair(draw: Draw) -> Drawn:
    shape, dtype = draw_shape(draw, 2), draw_float(draw)
    return [draw_input(draw, shape, dtype, True, PLAIN) for _ in "ab"], {}


program("index put", "index_put.values index_put_.values", _triangle, _put)
program(
    "solve",
    "_linalg_solve_ex",
    _square_pair,
    lambda ops, a, b: ops.solve(ops.add(ops.eye(a.shape[-1], ops.dtype("float32")), a), b),
)
program("norm of everything", "linalg_vector_norm.all", unary(1, layout=PLAIN), lambda ops, x: ops.norm(x))
program("block diagonal", "block_diag", _blocks, lambda ops, x: ops.block_diagonal(x))
program("kron", "mul", _matrices, lambda ops, a, b: ops.kron(a, b))
program("add scaled in place", "add_.scaled", _same_pair, lambda ops, a, b: ops.add_scaled_(ops.mul(a, 2.0), b))


class TorchMatrixOps:
    """The same in real PyTorch."""

    kron = staticmethod(torch.kron)
    norm = staticmethod(torch.norm)
    solve = staticmethod(lambda a, b: torch.linalg.solve(a, b, left=False))
    block_diagonal = staticmethod(lambda x: torch.block_diag(*torch.unbind(x)))
    add_scaled_ = staticmethod(lambda a, b: a.add_(b, alpha=2.0))

    @staticmethod
    def put_at(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return x.index_put((rows, columns), values)

    @staticmethod
    def put_at_(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        x[:, rows, columns] = values
        return x
