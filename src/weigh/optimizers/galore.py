"""GaLore's AdamW, as `galore_torch/adamw.py` and `galore_projector.py` (1.0) do it, with `proj_type="std"`.

Keeps the two averages of a gradient projected to `rank` columns (or rows, where a matrix is wider than high), and the
projection. That is renewed every 200 steps by a singular value decomposition, whose factors are whole; its workspace
inside the solver is not counted. As in its readme, matrices of attention and MLP layers are projected, all others not.
"""

from __future__ import annotations

from weigh.dims import Shape
from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

RENEWED_EVERY = 200
"""Steps (`update_proj_gap`)."""
TARGETS = ("attn", "mlp", "attention")
"""Parts of the names of matrices whose gradients are projected."""


class GaLore(Optimizer):
    """`galore_torch.GaLoreAdamW`."""

    implementations = ("forloop",)
    states_first = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.rank = choice.rank
        self.projected: set[int] = set()
        self.projections: dict[int, Tensor] = {}

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters; some of them are projected."""
        super().own(parameters)
        self.projected = {
            id(p.tensor) for p in parameters if p.tensor.ndim == 2 and any(t in p.names[0] for t in TARGETS)
        }

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages of the projected gradient."""
        shape = self._low_shape(param) if id(param) in self.projected else param.shape
        return [ops.kept_beside(param, shape, param.dtype, OPTIMIZER_STATE, "aten::zeros_like") for _ in range(2)]

    def _low_shape(self, param: Tensor) -> Shape:
        high, wide = param.shape
        return (high, min(self.rank, wide)) if high >= wide else (min(self.rank, high), wide)

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            if id(param) in self.projected:
                grad = self._project(param, grad)
            exp_avg, exp_avg_sq = self.state_of(param)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.sqrt(exp_avg_sq)  # this, the update and the gradient live into the next parameter's turn
            norm_grad = ops.div(exp_avg, denom)
            if id(param) in self.projected:
                norm_grad = self._project_back(param, norm_grad)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del grad, denom, norm_grad

    def _project(self, param: Tensor, grad: Tensor) -> Tensor:
        if (self.steps - 1) % RENEWED_EVERY == 0:
            self.projections[id(param)] = self._new_projection(param, grad)
            self.projections[id(param)].storage.relabel(OPTIMIZER_STATE, param.storage.path)
        projection = self.projections[id(param)]
        if param.shape[0] >= param.shape[1]:
            return ops.matmul(grad, projection.t())
        return ops.matmul(projection.t(), grad)

    def _new_projection(self, param: Tensor, grad: Tensor) -> Tensor:
        """`get_orthogonal_matrix`: a slice of one factor, which keeps the whole factor where nothing casts it."""
        matrix = ops.to(grad, FLOAT32)
        high, wide = matrix.shape
        least = min(high, wide)
        left = empty((high, least), FLOAT32, "aten::_linalg_svd")
        values = empty((least,), FLOAT32, "aten::_linalg_svd")
        right = empty((least, wide), FLOAT32, "aten::_linalg_svd")
        rank = min(self.rank, least)
        diagonal = empty((rank, rank), FLOAT32, "aten::diag_embed")
        if high >= wide:
            product = ops.matmul(left.narrow(1, rank), diagonal)
            chosen = right.narrow(0, rank)
        else:
            chosen = left.narrow(1, rank)
            product = ops.matmul(diagonal, right.narrow(0, rank))
        del diagonal
        cast = ops.to(chosen, param.dtype)
        del values, product
        return cast

    def _project_back(self, param: Tensor, update: Tensor) -> Tensor:
        projection = self.projections[id(param)]
        pair = (update, projection) if update.shape[0] >= update.shape[1] else (projection, update)
        return ops.mul(ops.matmul(*pair), 1.0)


OPTIMIZER = GaLore
