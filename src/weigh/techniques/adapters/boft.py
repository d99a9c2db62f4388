"""BOFT: the input is turned by a product of rotations that each turn small blocks of it.

Read: peft (0.21), tuners/boft/layer.py, without its CUDA extension (with it one kernel lays the blocks out, and makes
as much). Every pass makes whole matrices as wide as the input: the rotation and an identity, the blocks in fp32 and in
the input's dtype, and their products with a permutation, which lies there (or on the host, if
the model was on the device before) in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32
from weigh.errors import UsageError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Boft(LayerAdapter):
    """Rotations before, and a scale behind, each of the layers that are named."""

    kind: ClassVar[str] = "boft"
    keys: ClassVar[Mapping[str, str]] = {"block_size": "boft_block_size", "blocks": "boft_block_num"}
    harmless: ClassVar[tuple[str, ...]] = ("boft_n_butterfly_factor",)  # the extension alone knows more than one
    takes: ClassVar[tuple[type[Module], ...]] = (nn.Linear,)

    block_size: int = 4
    """Width of a block; 0 where their number is given."""
    blocks: int = 0
    """How many blocks (`boft_block_num`)."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its rotation."""
        return BoftLinear(layer, self)


class BoftLinear(AdaptedLayer):
    """`boft.Linear`."""

    def __init__(self, base_layer: Any, settings: Boft) -> None:
        super().__init__(base_layer)
        width_in, width_out = widths(base_layer)
        size = settings.block_size or width_in // settings.blocks
        if (settings.block_size and settings.blocks) or width_in % size:
            hint = "Give one of block_size and blocks, which divides the inputs of every layer."
            raise UsageError(f"blocks of {size} in {width_in} inputs", where="adapter", hint=hint)
        dtype = settings.dtype_beside(base_layer)
        self.boft_R = nn.parameter((1, width_in // size, size, size), dtype)
        self.boft_s = nn.parameter((width_out, 1), dtype)
        self.shape = (1, width_in, width_in)
        self.boft_P = nn.buffer(self.shape, FLOAT32) if settings.moved else None

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        width_out, width_in = self.boft_s.shape[0], self.shape[1]
        boft_rotation = ops.eye(width_in, previous_dtype)
        boft_scale = ops.ones((width_out, 1), previous_dtype)
        factors, blocks, size, _ = self.boft_R.shape
        boft_R = self.boft_R.view(factors * blocks, size, size)
        orth_rotate_butterfly = self._cayley_batch(boft_R)
        orth_rotate_butterfly = orth_rotate_butterfly.view(factors, blocks, size, size)
        orth_rotate_butterfly = orth_rotate_butterfly.squeeze(0)
        block_diagonal_butterfly = ops.block_diagonal(orth_rotate_butterfly)
        block_diagonal_butterfly = block_diagonal_butterfly.unsqueeze(0)
        boft_P = empty(self.shape, x.dtype, "aten::_to_copy") if self.boft_P is None else self.boft_P.to(x.dtype)
        block_diagonal_butterfly = block_diagonal_butterfly.to(x.dtype)
        butterfly_oft_mat_batch = ops.bmm(block_diagonal_butterfly, boft_P.permute(0, 2, 1))
        butterfly_oft_mat_batch = ops.bmm(boft_P, butterfly_oft_mat_batch)
        butterfly_oft_mat = ops.select(butterfly_oft_mat_batch, 0)
        boft_rotation = butterfly_oft_mat.matmul(boft_rotation)
        boft_scale = self.boft_s * boft_scale
        boft_rotation = boft_rotation.to(previous_dtype)
        x_rotated = x.matmul(boft_rotation)
        result: Tensor = self.base_layer(x_rotated)
        bias = self.bias
        if bias is not None:
            result = result - bias
        result = result * boft_scale.squeeze(-1)
        if bias is not None:
            result = result + bias
        result = result.to(previous_dtype)
        return result

    def _cayley_batch(self, data: Tensor) -> Tensor:
        batch, rows, columns = data.shape
        skew_mat = 0.5 * (data - data.transpose(1, 2))
        id_mat = ops.eye(rows, FLOAT32).unsqueeze(0).expand(batch, rows, columns)
        Q = ops.solve(id_mat + skew_mat, id_mat - skew_mat)
        return Q.to(data.dtype)
