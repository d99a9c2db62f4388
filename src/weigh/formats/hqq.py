"""HQQ: codes of 1 to 8 bits with a scale and a zero a group, and the settings stored as small tensors.

Names and shapes as `HQQLinear.state_dict` saves them (hqq 0.2.8, `core/quantize.py`, `core/bitpack.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dtypes import INT32, INT64, UINT8, DType
from weigh.errors import NotModelledError
from weigh.formats.base import LINEAR, Format, Stored, Weight, beside, bits_of, ceil, left_alone, number, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

PACKED = {8: (1, UINT8), 4: (2, UINT8), 3: (10, INT32), 2: (4, UINT8), 1: (8, UINT8)}
"""Bits of a code: how many share a number, and which."""
NUMBERS = ("nbits", "group_size", "axis")
FLAGS = (
    "view_as_float quant_scale quant_zero offload_meta encoded_state_dict stores_quant_config channel_wise optimize "
    "round_zero"
).split()
TEXTS = {"packing": len("4bit_u8"), "unpack_view_dtype": len("torch.uint8")}
OWN = ("scale", "zero", "shape", "compute_dtype", *NUMBERS, *FLAGS, *TEXTS)


@dataclass(frozen=True, slots=True)
class Hqq(Format):
    """Its settings."""

    method: ClassVar[str] = "hqq"
    bits: int
    group: int
    axis: int
    """1 groups along the input, 0 along the output."""
    skipped: tuple[str, ...]
    """Modules that stay."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        settings = found.get("quant_config")
        if not isinstance(settings, Mapping) or "weight_quant_params" not in settings:
            raise NotModelledError("HQQ with settings of its own for each kind of layer", where=where)
        weight = settings["weight_quant_params"]
        if weight.get("view_as_float") or settings.get("scale_quant_params") or settings.get("zero_quant_params"):
            raise NotModelledError("HQQ with quantized scales, or codes viewed as floats", where=where)
        return cls(
            bits=bits_of(weight, where, tuple(PACKED), "nbits"),
            group=number(weight, where, "group_size"),
            axis=number(weight, where, "axis", default=1),
            skipped=words(found, where, "skip_modules") or ("lm_head",),
        )

    @property
    def title(self) -> str:
        return f"{self.bits}-bit HQQ, groups of {self.group}"

    def converts(self, weight: Weight) -> bool:
        return weight.kind == LINEAR and not left_alone(weight.module, self.skipped)

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        groups = weight.elements // self.group
        rows, columns = (groups, self.group) if self.axis == 1 else (self.group, groups)
        scales = (groups, 1) if self.axis == 1 else (1, groups)
        codes, holder = PACKED[self.bits]
        return (
            beside(weight, "W_q", (ceil(rows, codes), columns), holder, weight.elements),
            beside(weight, "scale", scales, weight.dtype),
            beside(weight, "zero", scales, weight.dtype),
            beside(weight, "shape", (2,), INT64),
            *(beside(weight, name, (), INT32) for name in NUMBERS),
            *(beside(weight, name, (), UINT8) for name in FLAGS),
            *(beside(weight, name, (length,), UINT8) for name, length in TEXTS.items()),
            beside(weight, "compute_dtype", (_characters(weight.dtype),), UINT8),
        )

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        suffix = tensor.name.rpartition(".")[2]
        if suffix == "W_q":
            codes, _ = PACKED[self.bits]
            if self.bits == 3:
                raise NotModelledError("how many codes of 3 bits fill the last number", where=tensor.name)
            return tensor.num_elements * codes
        return 0 if suffix in OWN else None


def _characters(dtype: DType) -> int:
    return len({"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}.get(dtype.name, dtype.name))
