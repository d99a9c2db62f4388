"""MXFP4 as gpt-oss stores it: only the experts, whose blocks of 32 codes have their scales in a second tensor.

Names and shapes as transformers 5.23 reads them (`integrations/mxfp4.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import UINT8
from weigh.formats.base import EXPERTS, Format, Stored, Weight, left_alone, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Mxfp4(Format):
    """Its settings."""

    method: ClassVar[str] = "mxfp4"
    skipped: tuple[str, ...]
    """Modules that stay."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        return cls(words(found, where, "modules_to_not_convert") or ())

    @property
    def title(self) -> str:
        return "mxfp4 in blocks of 32, experts only"

    def converts(self, weight: Weight) -> bool:
        return weight.kind == EXPERTS and not left_alone(weight.module, self.skipped)

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        blocks = (weight.experts, weight.rows, weight.columns // BLOCK)
        return (
            Stored(f"{weight.name}_blocks", (*blocks, BLOCK // 2), UINT8, weight.experts * weight.elements),
            Stored(f"{weight.name}_scales", blocks, UINT8, 0),
        )

    def store_all(self, weight: Weight) -> tuple[Stored, ...]:
        """The experts stay fused."""
        return self.store(weight)

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        if tensor.name.endswith("_blocks"):
            return tensor.num_elements * 2
        return 0 if tensor.name.endswith("_scales") else None
