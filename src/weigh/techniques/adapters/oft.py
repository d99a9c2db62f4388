"""OFT: the input is turned, block by block, by rotations made of skew-symmetric matrices.

Read: peft (0.21), tuners/oft/layer.py. The input is turned in the adapters' dtype, and stays for the rotations'
gradient. By default the rotation is a series (Cayley and Neumann), else it is solved for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dims import Size
from weigh.dtypes import FLOAT32, INT64
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Oft(LayerAdapter):
    """Rotations before each of the layers that are named."""

    kind: ClassVar[str] = "oft"
    keys: ClassVar[Mapping[str, str]] = {
        "block_size": "oft_block_size",
        "blocks": "r",
        "share": "block_share",
        "series": "use_cayley_neumann",
        "terms": "num_cayley_neumann_terms",
    }
    harmless: ClassVar[tuple[str, ...]] = ("eps",)

    block_size: int = 32
    """Width of a block; 0 where their number is given. The nearest that divides a layer's inputs is taken."""
    blocks: int = 0
    """How many blocks."""
    share: bool = False
    """All blocks of a layer are turned alike."""
    series: bool = True
    """The rotation is a series."""
    terms: int = 5
    """Of the series."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its rotation."""
        return OftLinear(layer, self)


class OftLinear(AdaptedLayer):
    """`oft.Linear`."""

    def __init__(self, base_layer: Any, settings: Oft) -> None:
        super().__init__(base_layer)
        width_in, _ = widths(base_layer)
        if settings.block_size:
            size = _divisor(width_in, settings.block_size)
            blocks = width_in // size
        else:
            blocks = _divisor(width_in, settings.blocks)
            size = width_in // blocks  # type: ignore[assignment]
        self.oft_R = OftRotation(settings, blocks, size, settings.dtype_beside(base_layer))

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        x = x.to(self.oft_R.weight.dtype)
        x = self.oft_R(x)
        result: Tensor = self.base_layer(x.to(previous_dtype))
        result = result.to(previous_dtype)
        return result


class OftRotation(Module):
    """`OFTRotationModule`: the upper triangles of the blocks."""

    def __init__(self, settings: Oft, blocks: Size, size: Size, dtype: Any) -> None:
        super().__init__()
        triangle = size * (size - 1) // 2
        self.blocks, self.size, self.settings = blocks, size, settings
        self.weight = nn.parameter((1 if settings.share else blocks, triangle), dtype)
        self.rows = nn.buffer((triangle,), INT64)
        self.cols = nn.buffer((triangle,), INT64)

    def forward(self, x: Tensor) -> Tensor:
        orth_rotate = self._cayley_batch()
        folded_shape = x.shape
        x_reshaped = x.reshape(*folded_shape[:-1], self.blocks, self.size)
        if self.settings.share:
            orth_rotate = ops.repeat(orth_rotate, self.blocks, 1, 1)
        x_rotated_reshaped = ops.einsum("abrk,rkc->abrc", x_reshaped, orth_rotate)
        x_rotated = x_rotated_reshaped.reshape(*folded_shape)
        return x_rotated

    def _cayley_batch(self) -> Tensor:
        batch, dtype = self.weight.shape[0], self.weight.dtype
        Q_skew = self._skew_symmetric(batch)
        if not self.settings.series:
            id_mat = ops.eye(self.size, FLOAT32).unsqueeze(0).expand(batch, self.size, self.size)
            R = ops.solve(id_mat + Q_skew, id_mat - Q_skew)
            return R.to(dtype)
        R = ops.repeat(ops.eye(self.size, dtype), batch, 1, 1)
        terms = self.settings.terms
        if terms > 1:
            R = ops.add_scaled_(R, Q_skew)
            if terms > 2:
                Q_squared = ops.bmm(Q_skew, Q_skew)
                R = ops.add_scaled_(R, Q_squared)
                Q_power = Q_squared
                for _ in range(3, terms - 1):
                    Q_power = ops.bmm(Q_power, Q_skew)
                    R = ops.add_scaled_(R, Q_power)
                Q_power = ops.bmm(Q_power, Q_skew)
                R = ops.add_(R, Q_power)
        return R

    def _skew_symmetric(self, batch: Size) -> Tensor:
        matrix = ops.zeros((batch, self.size, self.size), self.weight.dtype)
        matrix = ops.put_at_(matrix, self.rows, self.cols, self.weight)
        matrix = matrix - matrix.transpose(-2, -1)
        return matrix


def _divisor(width: Any, wanted: int) -> int:
    """`adjust_oft_parameters`: the divisor of a width that is nearest to what was asked for, the smaller of two."""
    if wanted >= width:
        return width  # type: ignore[no-any-return]
    higher = next(n for n in range(wanted, width + 1) if width % n == 0)
    lower = next(n for n in range(wanted, 0, -1) if width % n == 0)
    return lower if wanted - lower <= higher - wanted else higher
