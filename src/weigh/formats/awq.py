"""AWQ: 4-bit codes packed along the output, with a scale and a zero a group.

Names and shapes as AutoAWQ's `WQLinear_GEMM`, and `WQLinear_GEMV`, whose scales are padded (`qmodule` of AutoAWQ 0.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT16, INT32
from weigh.errors import NotModelledError
from weigh.formats.base import EMBEDDING, HEAD, Format, Stored, Weight, beside, bits_of, in_block, number, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

WORD = 32


@dataclass(frozen=True, slots=True)
class Awq(Format):
    """Its settings."""

    method: ClassVar[str] = "awq"
    bits: int
    group: int
    """Inputs that share a scale; -1 is all."""
    skipped: tuple[str, ...]
    """Parts of the names of modules that stay."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        version = str(found.get("version") or found.get("format") or "gemm").lower()
        if version != "gemm":
            raise NotModelledError(f"AWQ's layout {version!r}", where=where)
        return cls(
            bits=bits_of(found, where, (4, 8), "bits", "w_bit", default=4),
            group=number(found, where, "group_size", "q_group_size", default=128),
            skipped=words(found, where, "modules_to_not_convert") or (),
        )

    @property
    def title(self) -> str:
        return f"{self.bits}-bit AWQ, {'one group' if self.group == -1 else f'groups of {self.group}'}"

    @property
    def by_name(self) -> bool:
        return bool(self.skipped)

    def converts(self, weight: Weight) -> bool:
        inside = weight.kind not in (EMBEDDING, HEAD) and in_block(weight.name)
        return inside and not any(part in weight.module for part in self.skipped)

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        groups = 1 if self.group == -1 else weight.columns // self.group
        packed = weight.rows * self.bits // WORD
        return (
            beside(weight, "qweight", (weight.columns, packed), INT32, weight.elements),
            beside(weight, "qzeros", (groups, packed), INT32),
            beside(weight, "scales", (groups, weight.rows), FLOAT16),
        )

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        suffix = tensor.name.rpartition(".")[2]
        if suffix in ("qzeros", "scales"):
            return 0
        return tensor.num_elements * WORD // self.bits if suffix == "qweight" else None
