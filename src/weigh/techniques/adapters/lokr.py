"""LoKr: the Kronecker product of two small matrices, made whole for every pass.

Read: peft (0.21), tuners/lokr/layer.py and lycoris_utils.py. The product of the input with what was made is a linear
layer's, which keeps the made weight, in the adapters' dtype, until its backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class LoKr(LayerAdapter):
    """Two small matrices, or thin ones that make them, beside each of the layers that are named."""

    kind: ClassVar[str] = "lokr"
    keys: ClassVar[Mapping[str, str]] = {"factor": "decompose_factor"}
    harmless: ClassVar[tuple[str, ...]] = ("alpha", "alpha_pattern", "use_effective_conv2d", "rank_dropout_scale")
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Linear,)

    rank: int = 8
    """Width of the thin matrices, where it is less than half of the small ones'."""
    decompose_both: bool = False
    """The first small matrix is made of thin ones too."""
    factor: int | None = None
    """Into how many parts the widths are cut (`decompose_factor`); None: as near to their square roots as can be."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its matrices."""
        return LoKrLinear(layer, self)


class LoKrLinear(AdaptedLayer):
    """`lokr.Linear`."""

    def __init__(self, base_layer: Any, settings: LoKr) -> None:
        super().__init__(base_layer)
        dtype, rank = settings.dtype_beside(base_layer), settings.rank
        width_in, width_out = widths(base_layer)
        (in_m, in_n), (out_l, out_k) = (factorization(width, settings.factor) for width in (width_in, width_out))
        self.shape = (width_out, width_in)
        both = settings.decompose_both and rank < max(out_l, in_m) / 2
        self.lokr_w1 = Made(out_l, in_m, rank if both else None, dtype)
        self.lokr_w2 = Made(out_k, in_n, rank if rank < max(out_k, in_n) / 2 else None, dtype)

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        result: Tensor = self.base_layer(x)
        result = result + self._delta(x)
        result = result.to(previous_dtype)
        return result

    def _delta(self, x: Tensor) -> Tensor:
        w1, w2 = self.lokr_w1.whole(), self.lokr_w2.whole()
        weight = self._make(w1, w2).reshape(*self.shape)
        return ops.linear(x.to(weight.dtype), weight)

    @staticmethod
    def _make(w1: Tensor, w2: Tensor) -> Tensor:
        rebuild = ops.kron(w1, w2)
        return rebuild * 2.0


class Made(Module):
    """A small matrix, or the two thin ones (a, b) that make it."""

    def __init__(self, rows: int, columns: int, rank: int | None, dtype: DType) -> None:
        super().__init__()
        if rank is None:
            self.w = nn.parameter((rows, columns), dtype)
        else:
            self.w_a = nn.parameter((rows, rank), dtype)
            self.w_b = nn.parameter((rank, columns), dtype)

    def whole(self) -> Tensor:
        """The matrix."""
        return self.w if hasattr(self, "w") else self.w_a.matmul(self.w_b)


def factorization(dimension: Any, factor: int | None = None) -> tuple[int, int]:
    """Two factors of a width, the first the smaller: as near to each other as `factor` lets them be.

    >>> factorization(3072), factorization(128, 4), factorization(127)
    ((48, 64), (4, 32), (1, 127))
    """
    if factor is not None and dimension % factor == 0:
        return factor, dimension // factor
    most = dimension if factor is None else factor
    found = 1
    for divisor in range(1, int(dimension**0.5) + 1):
        if dimension % divisor == 0 and divisor <= most:
            found = divisor
    return found, dimension // found
