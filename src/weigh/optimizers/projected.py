"""What GaLore and APOLLO share: matrices whose gradients are projected to a few rows or columns.

Mirrors `galore_torch/galore_projector.py` (1.0) with `proj_type="std"`: a matrix that is higher than wide keeps its
rows, another its columns. The projection is renewed every 200 steps by a singular value decomposition, whose factors
are whole; its workspace inside the solver is not counted. Linear layers are projected whose names have one of
`Choice.targets` in them, or match one as a pattern, as transformers' `optim_target_modules` finds them.
"""

from __future__ import annotations

import re

from weigh.dims import Shape
from weigh.dtypes import FLOAT32
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.nn import Embedding, Parameter
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

RENEWED_EVERY = 200
"""Steps (`update_proj_gap`)."""
ALL_LINEAR = "all-linear"


class Projected(Optimizer):
    """An optimizer that sees some gradients through a projection."""

    implementations = ("forloop",)
    shardable = False
    states_first = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.rank, self.targets = choice.rank, choice.targets
        self.projected: set[int] = set()
        self.projections: dict[int, Tensor] = {}

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters; some of them are projected.

        Raises:
            UsageError: none of them is a target.
        """
        super().own(parameters)
        self.projected = {id(p.tensor) for p in parameters if self._is_target(p)}
        if not self.projected and len(parameters) > 1:
            raise UsageError(
                f"no trained linear layer has {' or '.join(self.targets)} in its name",
                where="projection_targets",
                hint=f"Give parts of the names of layers, or {ALL_LINEAR}.",
            )

    def _is_target(self, parameter: Parameter) -> bool:
        if parameter.tensor.ndim != 2:
            return False
        name = parameter.names[0].removesuffix(".weight")
        if ALL_LINEAR in self.targets:
            return not isinstance(parameter.module, Embedding)
        return any(target in name or _matches(target, name) for target in self.targets)

    def low_shape(self, param: Tensor) -> Shape:
        """The shape of what is kept beside a parameter."""
        if id(param) not in self.projected:
            return param.shape
        high, wide = param.shape
        return (high, min(self.rank, wide)) if high >= wide else (min(self.rank, high), wide)

    def project(self, param: Tensor, grad: Tensor) -> Tensor:
        """The gradient in few rows or columns."""
        if (self.steps - 1) % RENEWED_EVERY == 0:
            self.projections[id(param)] = self.new_projection(param, grad)
            self.projections[id(param)].storage.relabel(OPTIMIZER_STATE, param.storage.path)
        projection = self.projections[id(param)]
        if param.shape[0] >= param.shape[1]:
            return ops.matmul(grad, projection.t())
        return ops.matmul(projection.t(), grad)

    def new_projection(self, param: Tensor, grad: Tensor) -> Tensor:
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
            unused = ops.matmul(left.narrow(1, rank), diagonal)
            chosen = right.narrow(0, rank)
        else:
            chosen = left.narrow(1, rank)
            unused = ops.matmul(diagonal, right.narrow(0, rank))
        del diagonal
        cast = ops.to(chosen, grad.dtype)
        del values, unused
        return cast

    def project_back(self, param: Tensor, update: Tensor) -> Tensor:
        """The update in its parameter's shape."""
        projection = self.projections[id(param)]
        # Upstream looks at the projected shape here, which is as high or wide as the parameter's.
        pair = (update, projection) if update.shape[0] >= update.shape[1] else (projection, update)
        return ops.mul(ops.matmul(*pair), 1.0)


def _matches(target: str, name: str) -> bool:
    try:
        return re.fullmatch(target, name) is not None
    except re.error:
        raise UsageError(f"{target!r} is no pattern", where="projection_targets", hint="Name parts of names.") from None
