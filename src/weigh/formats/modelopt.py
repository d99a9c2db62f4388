"""NVIDIA ModelOpt: NVFP4 with a scale a block of 16 and one a tensor, or FP8 with a scale a tensor.

Names and shapes as vLLM's `modelopt.py` (`ModelOptNvFp4LinearMethod`, `ModelOptFp8LinearMethod`) loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import FLOAT8_E4M3, FLOAT32, UINT8
from weigh.errors import NotModelledError
from weigh.formats.base import EMBEDDING, Format, Stored, Weight, beside, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

BLOCK = 16
SCALES = (".weight_scale", ".weight_scale_2", ".input_scale", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True)
class ModelOpt(Format):
    """Its settings."""

    method: ClassVar[str] = "modelopt"
    algorithm: str
    """ "NVFP4" or "FP8"."""
    skipped: tuple[str, ...]
    """Names of modules that stay, with wildcards."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        inner = found.get("quantization")
        inner = inner if isinstance(inner, Mapping) else found
        algorithm = str(inner.get("quant_algo") or "FP8").upper()
        if algorithm not in ("NVFP4", "FP8"):
            raise NotModelledError(f"ModelOpt's {algorithm}", where=where)
        return cls(algorithm, words(inner, where, "ignore", "exclude_modules") or ())

    @property
    def title(self) -> str:
        return "nvfp4 in blocks of 16" if self.algorithm == "NVFP4" else "fp8 with a scale a tensor"

    def converts(self, weight: Weight) -> bool:
        left = (fnmatch(weight.module, p) or weight.module.startswith(f"{p}.") for p in self.skipped)
        return weight.kind != EMBEDDING and not any(left)

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        activations = beside(weight, "input_scale", (), FLOAT32)
        if self.algorithm == "FP8":
            return (
                beside(weight, "weight", (weight.rows, weight.columns), FLOAT8_E4M3, weight.elements),
                beside(weight, "weight_scale", (), FLOAT32),
                activations,
            )
        return (
            beside(weight, "weight", (weight.rows, weight.columns // 2), UINT8, weight.elements),
            beside(weight, "weight_scale", (weight.rows, weight.columns // BLOCK), FLOAT8_E4M3),
            beside(weight, "weight_scale_2", (), FLOAT32),
            activations,
        )

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        if tensor.name.endswith(SCALES):
            return 0
        packed = self.algorithm == "NVFP4" and tensor.dtype == "U8" and tensor.name.endswith(".weight")
        return tensor.num_elements * 2 if packed else None
