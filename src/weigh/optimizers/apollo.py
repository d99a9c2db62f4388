"""APOLLO, as `apollo_torch/apollo.py` (1.0.3) does it, with random projections.

Keeps the two averages of a projected gradient, the projection, and a norm; the gradient itself is scaled, row by row
(`apollo`) or as a whole (`apollo_mini`, of rank 1), and its growth limited. A projection is drawn anew every 200 steps.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice
from weigh.optimizers.projected import Projected
from weigh.trace.events import OPTIMIZER_STATE

MINI = "apollo_mini"


class Apollo(Projected):
    """`apollo_torch.APOLLOAdamW`."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.by_channel = choice.name != MINI
        if not self.by_channel:
            self.rank = 1
        self.norms: dict[int, Tensor] = {}
        """Of each scaled gradient (`state["scaled_grad"]`)."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages of the projected gradient."""
        shape = self.low_shape(param)
        return [ops.kept_beside(param, shape, param.dtype, OPTIMIZER_STATE, "aten::zeros_like") for _ in range(2)]

    def new_projection(self, param: Tensor, grad: Tensor) -> Tensor:
        """`get_orthogonal_matrix`: drawn in fp32."""
        matrix = ops.to(grad, FLOAT32)
        high, wide = matrix.shape
        shape = (self.rank, wide) if high >= wide else (high, self.rank)
        return ops.to(ops.div(empty(shape, FLOAT32, "aten::randn"), 1.0), grad.dtype)

    def forloop(self) -> None:
        for param, whole in self.gradients_one_by_one():
            grad = whole
            if id(param) in self.projected:
                grad = self.project(param, grad)
            exp_avg, exp_avg_sq = self.state_of(param)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.sqrt(exp_avg_sq)  # this and all below live into the next parameter's turn
            norm_grad = ops.div(exp_avg, denom)
            if id(param) in self.projected:
                factor = self._factor(norm_grad, grad, param)
                scaled_grad = ops.mul(whole, factor)
                norm = ops.vector_norm(scaled_grad)
                if id(param) in self.norms:
                    self._watch_growth(param, norm)
                    scaled_grad = ops.div(scaled_grad, 1.0)
                    self._remember(param, ops.div(norm, 1.0))
                else:
                    self._remember(param, norm)
                norm_grad = scaled_grad
                ops.in_place("aten::mul_", [norm_grad])
            ops.in_place("aten::add_", [param], reads=2, flops=2)

    def _factor(self, norm_grad: Tensor, grad: Tensor, param: Tensor) -> Tensor:
        """How much each channel, or all of the gradient, is scaled."""
        if self.by_channel:
            dim = 0 if param.shape[0] < param.shape[1] else 1
            return ops.div(ops.norm_along(norm_grad, dim), ops.add(ops.norm_along(grad, dim), 1e-8))
        return ops.div(ops.vector_norm(norm_grad), ops.add(ops.vector_norm(grad), 1e-8))

    def _watch_growth(self, param: Tensor, norm: Tensor) -> None:
        """The limiter of a norm's growth, which as a rule has nothing to limit: it comes to 1.01 / 1.01."""
        growth = ops.div(norm, ops.add(self.norms[id(param)], 1e-8))
        ops.less_than(growth)

    def _remember(self, param: Tensor, norm: Tensor) -> None:
        norm.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        self.norms[id(param)] = norm


OPTIMIZER = Apollo
