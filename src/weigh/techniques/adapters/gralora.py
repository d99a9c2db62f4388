"""GraLoRA: a LoRA for each of k x k blocks of the weight, as peft (0.21) runs it (peft/tuners/gralora/layer.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.errors import UsageError
from weigh.ghost import nn, ops
from weigh.ghost.nn import Module
from weigh.ghost.tensor import Tensor
from weigh.records import dataclass
from weigh.techniques.adapters.base import AdaptedLayer, LayerAdapter, widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Gralora(LayerAdapter):
    """Two stacks of thin matrices beside each of the layers that are named."""

    kind: ClassVar[str] = "gralora"
    keys: ClassVar[Mapping[str, str]] = {"dropout": "gralora_dropout", "blocks": "gralora_k", "hybrid_rank": "hybrid_r"}
    harmless: ClassVar[tuple[str, ...]] = ("alpha",)

    rank: int = 32
    """Width of the adapters of a row of blocks together."""
    blocks: int = 2
    """Into how many the weight is cut, each way (`gralora_k`)."""
    hybrid_rank: int = 0
    """Width of a plain LoRA besides (`hybrid_r`)."""
    dropout: float = 0.0
    """On the adapters' input."""

    def adapter(self, layer: Any, shared: Any) -> Module:
        """The layer with its blocks."""
        return GraloraLinear(layer, self)


class GraloraLinear(AdaptedLayer):
    """`gralora.Linear`: A is (k, in / k, rank), B (k, rank, out / k)."""

    def __init__(self, base_layer: Any, settings: Gralora) -> None:
        super().__init__(base_layer)
        dtype, k, rank = settings.dtype_beside(base_layer), settings.blocks, settings.rank
        width_in, width_out = widths(base_layer)
        if width_in % k or width_out % k or rank % k:
            hint = "It must divide both widths of every layer, and the rank."
            raise UsageError(f"{k} blocks do not divide {base_layer.path}", where="adapter: blocks", hint=hint)
        self.k, self.p, self.hybrid_rank = k, settings.dropout, settings.hybrid_rank
        self.gralora_A = nn.parameter((k, width_in // k, rank), dtype)
        self.gralora_B = nn.parameter((k, rank, width_out // k), dtype)
        if self.hybrid_rank:
            self.gralora_A_general = nn.Linear(width_in, self.hybrid_rank, dtype)
            self.gralora_B_general = nn.Linear(self.hybrid_rank, width_out, dtype)

    def forward(self, x: Tensor) -> Tensor:
        previous_dtype = x.dtype
        result: Tensor = self.base_layer(x)
        batch, length, width_in = x.shape
        k, rank = self.k, self.gralora_A.shape[2]
        dtype = self.gralora_A.dtype
        cut = ops.dropout(x.to(dtype), self.p, self.training).view(batch, length, k, width_in // k)
        inner = ops.einsum("blni,nir->blnr", cut, self.gralora_A)
        del cut
        inner = inner.view(batch, length, k, k, rank // k).permute(0, 1, 3, 2, 4).reshape(batch, length, k, rank)
        output = ops.einsum("bljr,jro->bljo", inner, self.gralora_B)
        del inner
        output = output.reshape(batch, length, -1)
        result = ops.add_(result, output.to(result.dtype) * 2.0)
        if self.hybrid_rank:
            dropped = ops.dropout(x.to(dtype), self.p, self.training)
            hybrid_output = self.gralora_B_general(self.gralora_A_general(dropped))
            del dropped
            result = ops.add_(result, hybrid_output.to(result.dtype) * 2.0)
        result = result.to(previous_dtype)
        return result
