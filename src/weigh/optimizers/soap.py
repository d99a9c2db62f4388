"""SOAP, as `soap.py` of nikhilvyas/SOAP does it, for parameters in fp32 (others its own code refuses).

Keeps Adam's two averages, and for each dimension of a matrix up to 10,000 two squares: the average of the gradient's
outer product and its eigenvectors. Those are found by an eigendecomposition once, then every tenth step by a QR
decomposition; workspaces inside the solvers are not counted. The first step updates no parameter.
"""

from __future__ import annotations

from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

LARGEST = 10_000
"""Of a dimension that is preconditioned (`max_precond_dim`)."""
FREQUENCY = 10
"""Steps between renewals of the eigenvectors (`precondition_frequency`)."""
Squares = list[Tensor | None]
"""For each dimension; None where it is not preconditioned."""


class Soap(Optimizer):
    """`soap.SOAP`."""

    implementations = ("forloop",)
    shardable = False
    states_first = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.outer: dict[int, Squares] = {}
        self.vectors: dict[int, Squares] = {}

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters.

        Raises:
            UsageError: they are not in fp32.
        """
        odd = next((p for p in parameters if p.tensor.dtype is not FLOAT32), None)
        if odd is not None:
            raise UsageError(
                f"SOAP averages in fp32, and {odd.names[0]} is in {odd.tensor.dtype.name}",
                where="optimizer",
                hint="Train in fp32, with --autocast bf16 where products should be in 16 bits.",
            )
        super().own(parameters)

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`; `GG` and `Q` are kept apart."""
        return [ops.zeros_like(param, OPTIMIZER_STATE) for _ in range(2)]

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            if id(param) not in self.state:
                self.state_of(param)
                self._begin(param, grad)
                continue
            grad_projected = _turned(grad, self.vectors[id(param)], 0)
            exp_avg, exp_avg_sq = self.state[id(param)]  # these and all below live into the next parameter's turn
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.pow(grad_projected, 2)
            ops.in_place("aten::add_", [exp_avg_sq], reads=2, flops=3)
            denom = ops.sqrt(exp_avg_sq)
            exp_avg_projected = exp_avg
            norm_grad = _turned(ops.div(exp_avg_projected, denom), self.vectors[id(param)], 1)
            ops.in_place("aten::add_", [param], reads=2, flops=4)
            self._update_preconditioner(param, grad)
        del grad
        if self.vectors and self.steps > 1:
            del grad_projected, exp_avg, exp_avg_sq, exp_avg_projected, denom, norm_grad

    def prepare(self) -> None:
        super().prepare()
        for parameter in self.parameters:
            self.outer[id(parameter.tensor)] = _squares(parameter.tensor)
            self.vectors[id(parameter.tensor)] = _squares(parameter.tensor)

    def _begin(self, param: Tensor, grad: Tensor) -> None:
        """`init_preconditioner`, then outer products and eigenvectors."""
        self.outer[id(param)] = _squares(param)
        outer_product = self._average_outer_products(param, grad)
        self.vectors[id(param)] = self._eigenvectors(param)
        del outer_product

    def _average_outer_products(self, param: Tensor, grad: Tensor) -> Tensor | None:
        """Upstream's loop variable, the last of them, lives as long as its caller."""
        outer_product = None
        for dim, average in enumerate(self.outer[id(param)]):
            if average is not None:
                outer_product = ops.matmul(grad, grad.t()) if dim == 0 else ops.matmul(grad.t(), grad)
                ops.in_place("aten::lerp_", [average], reads=2, flops=3)
        return outer_product

    def _eigenvectors(self, param: Tensor) -> Squares:
        """`get_orthogonal_matrix`."""
        final: Squares = []
        values = None
        for matrix in self.outer[id(param)]:
            if matrix is None:
                final.append(None)
                continue
            size = matrix.shape[0]
            shifted = ops.add(matrix, ops.mul(empty((size, size), FLOAT32, "aten::eye"), 1e-30))
            found = empty((size,), FLOAT32, "aten::_linalg_eigh"), empty((size, size), FLOAT32, "aten::_linalg_eigh")
            del shifted
            values, vectors = found  # which live until they are found for the next dimension
            del found
            vectors = ops.like("aten::flip", vectors)
            final.append(_kept(vectors, param))
        del values
        return final

    def _update_preconditioner(self, param: Tensor, grad: Tensor) -> None:
        state = self.state[id(param)]
        state[0] = _kept(_turned(state[0], self.vectors[id(param)], 1), param)
        outer_product = self._average_outer_products(param, grad)
        if (self.steps - 1) % FREQUENCY == 0:
            self._renew(param)
        state[0] = _kept(_turned(state[0], self.vectors[id(param)], 0), param)
        del outer_product

    def _renew(self, param: Tensor) -> None:
        """`get_orthogonal_matrix_QR`."""
        exp_avg_sq = self.state[id(param)][1]
        final: Squares = []
        est_eig = sort_idx = power_iter = upper = None  # each lives until it is made for the next dimension
        for matrix, vectors in zip(self.outer[id(param)], self.vectors[id(param)], strict=True):
            if matrix is None or vectors is None:
                final.append(None)
                continue
            size = matrix.shape[0]
            est_eig = _diagonal(matrix, vectors)
            sort_idx = _order(size)
            exp_avg_sq = _kept(ops.like("aten::index_select", exp_avg_sq), param)
            vectors = ops.like("aten::index", vectors)
            power_iter = ops.matmul(matrix, vectors)
            found = empty((size, size), FLOAT32, "aten::linalg_qr")
            upper = empty((size, size), FLOAT32, "aten::linalg_qr")
            final.append(_kept(found, param))
        del est_eig, sort_idx, power_iter, upper
        self.state[id(param)][1] = exp_avg_sq
        self.vectors[id(param)] = final


def _squares(param: Tensor) -> Squares:
    return [
        ops.kept_beside(param, (size, size), FLOAT32, OPTIMIZER_STATE) if param.ndim > 1 and size <= LARGEST else None
        for size in param.shape
    ]


def _diagonal(matrix: Tensor, vectors: Tensor) -> Tensor:
    product = ops.matmul(ops.matmul(vectors.t(), matrix), vectors)
    return empty((product.shape[0],), FLOAT32, "aten::diagonal_copy")


def _order(size: Size) -> Tensor:
    """`argsort`: the sorted values are dropped."""
    values = empty((size,), FLOAT32, "aten::sort")
    indices = empty((size,), INT64, "aten::sort")
    del values
    return indices


def _turned(x: Tensor, vectors: Squares, dim: int) -> Tensor:
    """`project` (over the first dimension of the vectors) or `project_back` (over the second)."""
    for matrix in vectors:
        turned = x.t() if x.ndim == 2 else x
        x = turned if matrix is None else ops.matmul(turned, matrix if dim == 0 else matrix.t())
        del turned
    return x


def _kept(made: Tensor, param: Tensor) -> Tensor:
    made.storage.relabel(OPTIMIZER_STATE, param.storage.path)
    return made


OPTIMIZER = Soap
