"""FP8 with scales beside it: a block's (DeepSeek-V3), a tensor's, or a row's (FBGEMM).

Names and shapes as `FP8Linear` and `FbgemmFp8Linear` of transformers 5.23 have them
(`integrations/finegrained_fp8.py`, `integrations/fbgemm_fp8.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT8_E4M3, FLOAT32
from weigh.errors import InputError, NotModelledError
from weigh.formats.base import EMBEDDING, EXPERTS, HEAD, Format, Stored, Weight, beside, ceil, left_alone, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

SCALES = ("_scale_inv", "_scale")
"""How the names of scales end: of weights, of activations, of fused experts."""


@dataclass(frozen=True, slots=True)
class FineGrainedFp8(Format):
    """FP8 with a scale a block, or a tensor.

    The scales are fp32 even where `scale_fmt` is "ue8m0", as in DeepSeek-V3.1's files; only V4 stores them in a byte,
    and its experts in 4 bits, which is refused.
    """

    method: ClassVar[str] = "fp8"
    block: tuple[int, int] | None
    """Rows and columns that share a scale; None: all."""
    static: bool
    """The activations' scale is stored too."""
    skipped: tuple[str, ...] | None
    """Modules that stay; None: the output layer."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        if found.get("expert_dtype", "fp8") != "fp8":
            raise NotModelledError(f"experts in {found['expert_dtype']}", where=where)
        block = found.get("weight_block_size", (128, 128))
        if block is not None and (
            not isinstance(block, list | tuple) or len(block) != 2 or not all(type(b) is int and b > 0 for b in block)
        ):
            raise InputError(f"is {block!r}", where=f"{where}: weight_block_size", hint="Give two sizes, or null.")
        return cls(
            block=None if block is None else (block[0], block[1]),
            static=found.get("activation_scheme") == "static",
            skipped=words(found, where, "modules_to_not_convert", "ignored_layers"),
        )

    @property
    def title(self) -> str:
        scales = "with a scale a tensor" if self.block is None else f"in blocks of {self.block[0]} x {self.block[1]}"
        return f"fp8 {scales}"

    @property
    def by_name(self) -> bool:
        return bool(self.skipped)

    def converts(self, weight: Weight) -> bool:
        if weight.kind == EMBEDDING or (weight.kind == HEAD and self.skipped is None):
            return False
        return not left_alone(weight.module, self.skipped or ())

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        shape = () if self.block is None else (ceil(weight.rows, self.block[0]), ceil(weight.columns, self.block[1]))
        stored = (
            beside(weight, "weight", (weight.rows, weight.columns), FLOAT8_E4M3, weight.elements),
            beside(weight, "weight_scale_inv", shape, FLOAT32),
        )
        return (*stored, beside(weight, "activation_scale", (), FLOAT32)) if self.static else stored

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        return 0 if tensor.name.endswith(SCALES) else None


@dataclass(frozen=True, slots=True)
class FbgemmFp8(Format):
    """FP8 with a scale a row."""

    method: ClassVar[str] = "fbgemm_fp8"
    skipped: tuple[str, ...] | None
    """Modules that stay; None: the output layer."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        return cls(words(found, where, "modules_to_not_convert"))

    @property
    def title(self) -> str:
        return "fp8 with a scale a row"

    @property
    def by_name(self) -> bool:
        return bool(self.skipped)

    def converts(self, weight: Weight) -> bool:
        if weight.kind in (EMBEDDING, EXPERTS) or (weight.kind == HEAD and self.skipped is None):
            return False
        return not left_alone(weight.module, self.skipped or ())

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        return (
            beside(weight, "weight", (weight.rows, weight.columns), FLOAT8_E4M3, weight.elements),
            beside(weight, "weight_scale", (weight.rows, 1), FLOAT32),
        )

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        return 0 if tensor.name.endswith(SCALES) else None
