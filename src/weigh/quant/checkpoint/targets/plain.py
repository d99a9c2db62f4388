"""Plain numbers: what `weigh dequantize` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from weigh import dtypes
from weigh.quant.checkpoint.layout import Output
from weigh.quant.checkpoint.targets.base import Encoder, Target
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.sources.checkpoint import StoredTensor


@dataclass(frozen=True, slots=True)
class Plain(Target):
    """Every matrix in the number format that it was read in."""

    name: ClassVar[str] = "plain"

    def config(self, kept: Sequence[str]) -> dict[str, Any]:
        return {}

    def cut(self, tensor: StoredTensor) -> int:
        return 1

    def outputs(self, tensor: StoredTensor) -> tuple[Output, ...]:
        return (Output(tensor.name, tensor.shape, dtypes.get(tensor.dtype), tensor.dtype),)

    def encoder(self, tensor: StoredTensor) -> Encoder:
        return self.caster(tensor, *self.outputs(tensor))
