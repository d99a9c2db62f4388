"""PSOFT: the principal part of a weight, fixed as two thin matrices, with a small rotation between them.

Read: peft (0.21), tuners/psoft/layer.py. The thin matrices are fp32. After a full decomposition the first is a view of
all right singular vectors, which so stay in memory; after one of low rank (`psoft_svd`) it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, INT64
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Psoft(LayerAdapter):
    """A rotation beside each of the layers that are named."""

    kind: ClassVar[str] = "psoft"
    keys: ClassVar[Mapping[str, str]] = {
        "dropout": "psoft_dropout",
        "decomposition": "psoft_svd",
        "start": "ab_svd_init",
        "orthogonal": "psoft_orth",
        "magnitude_a": "psoft_mag_a",
        "magnitude_b": "psoft_mag_b",
        "series": "use_cayley_neumann",
        "terms": "num_cayley_neumann_terms",
    }
    harmless: ClassVar[tuple[str, ...]] = ("psoft_alpha", "psoft_svd_lowrank_niter", "random_seed")
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Linear,)

    rank: int = 32
    """Width of the thin matrices."""
    dropout: float = 0.0
    """On the adapters' input."""
    decomposition: str = "full"
    """How the weight is decomposed: "full" or "lowrank" (`psoft_svd`)."""
    start: str = "psoft_init"
    """How it is shared between the thin matrices: "psoft_init" or "pissa_init" (`ab_svd_init`)."""
    orthogonal: bool = True
    """What is between them is a rotation, not any matrix."""
    magnitude_a: bool = True
    """Its columns are scaled."""
    magnitude_b: bool = True
    """Its rows are scaled."""
    series: bool = False
    """The rotation is a series, not solved for."""
    terms: int = 5
    """Of the series."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its rotation."""
        return PsoftLinear(layer, self)


class PsoftLinear(AdaptedLayer):
    """`psoft.Linear`."""

    def __init__(self, base_layer: Any, settings: Psoft) -> None:
        super().__init__(base_layer)
        width_in, width_out = widths(base_layer)
        rank = settings.rank
        self.p = settings.dropout
        vectors = nn.buffer((min(width_in, width_out), width_in), FLOAT32) if _keeps_all(settings) else None
        self.A = vectors.narrow(0, rank).detach() if vectors is not None else nn.buffer((rank, width_in), FLOAT32)
        self.B = nn.buffer((width_out, rank), FLOAT32)
        self.psoft_R = OrthLayer(settings, settings.dtype_beside(base_layer))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        result_dtype = result.dtype
        x_cast = x.to(self.A.dtype)
        x_d = ops.dropout(x_cast, self.p, self.training)
        xa = x_d.matmul(self.A.t())
        xr = self.psoft_R(xa)
        delta_y = (xr - xa).matmul(self.B.t())
        result = result + (delta_y * 2.0)
        result = result.to(result_dtype)
        return result


def _keeps_all(settings: Psoft) -> bool:
    """The first thin matrix is a view of all right singular vectors."""
    return settings.decomposition == "full" and settings.start == "psoft_init"


class OrthLayer(Module):
    """What is between the thin matrices."""

    def __init__(self, settings: Psoft, dtype: Any) -> None:
        super().__init__()
        size = settings.rank
        triangle = size * (size - 1) // 2
        self.settings, self.size = settings, size
        self.weight = nn.parameter((triangle,) if settings.orthogonal else (size, size), dtype)
        self.vector_b = nn.parameter((size,), dtype) if settings.magnitude_b else None
        self.vector_a = nn.parameter((size,), dtype) if settings.magnitude_a else None
        if settings.orthogonal:
            self.rows = nn.buffer((triangle,), INT64)
            self.cols = nn.buffer((triangle,), INT64)

    def forward(self, x: Tensor) -> Tensor:
        R = self._get_matrix()
        return x.matmul(R.to(x.dtype).t()).to(x.dtype)

    def _get_matrix(self) -> Tensor:
        R = self.weight
        if self.settings.orthogonal:
            Q = self._skew_symmetric()
            id_mat = ops.eye(self.size, Q.dtype)
            if not self.settings.series:
                R = ops.solve(id_mat - Q, id_mat + Q)
            else:
                R = id_mat.clone()
                if self.settings.terms > 1:
                    R = ops.add_scaled_(R, Q)
                    if self.settings.terms > 2:
                        Q_squared = Q.matmul(Q)
                        R = ops.add_scaled_(R, Q_squared)
                        Q_power = Q_squared
                        for _ in range(3, self.settings.terms - 1):
                            Q_power = Q_power.matmul(Q)
                            R = ops.add_scaled_(R, Q_power)
                        Q_power = Q_power.matmul(Q)
                        R = ops.add_(R, Q_power)
        if self.vector_b is not None:
            R = self.vector_b.unsqueeze(1) * R
        if self.vector_a is not None:
            R = R * self.vector_a.unsqueeze(0)
        return R

    def _skew_symmetric(self) -> Tensor:
        Q = ops.zeros((self.size, self.size), self.weight.dtype)
        Q = ops.put_at(Q, self.rows, self.cols, self.weight)
        return Q - Q.transpose(0, 1)
