"""bitsandbytes: LLM.int8() with a scale a row, NF4 and FP4 with a scale a block of 64.

Names and shapes as `Params4bit` and `Linear8bitLt` save them (bitsandbytes 0.50, `nn/modules.py`, `functional.py`:
`QuantState.as_dict`); which modules are converted as `replace_with_bnb_linear` of transformers 5.23 chooses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh import dtypes
from weigh.dtypes import FLOAT32, INT8, UINT8, DType
from weigh.formats.base import EXPERTS, HEAD, LINEAR, Format, Stored, Weight, beside, ceil, left_alone, words
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.sources.checkpoint import StoredTensor

BLOCK, NESTED_BLOCK = 64, 256
OFFSET = 0.012345678901234567
"""Stands for the mean that double quantization writes as text: 20 characters in most tensors, some fewer in others."""


@dataclass(frozen=True, slots=True)
class Bitsandbytes(Format):
    """Its settings."""

    method: ClassVar[str] = "bitsandbytes"
    bits: int
    """8, or 4."""
    quant_type: str
    """Of 4 bits: "nf4" or "fp4"."""
    double: bool
    """Whether the scales of 4 bits are quantized again."""
    storage: DType
    """What 4-bit codes are kept in."""
    skipped: tuple[str, ...] | None
    """Modules that stay as they are; None: the output layer."""
    fused_experts: bool
    """Experts were one tensor when it was saved (transformers 5), which are no linear layers and stay."""

    @classmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        spelled = str(found.get("bnb_4bit_quant_storage") or "uint8")
        return cls(
            bits=8 if found.get("load_in_8bit") or found.get("_load_in_8bit") else 4,
            quant_type=str(found.get("bnb_4bit_quant_type") or "fp4"),
            double=bool(found.get("bnb_4bit_use_double_quant")),
            storage=dtypes.get(spelled),
            skipped=words(found, where, "llm_int8_skip_modules"),
            fused_experts=str(config.get("transformers_version") or "4").split(".")[0] >= "5",
        )

    @property
    def title(self) -> str:
        if self.bits == 8:
            return "int8 with a scale a row (LLM.int8())"
        return f"{self.quant_type} in blocks of {BLOCK}{', double quantization' if self.double else ''}"

    def converts(self, weight: Weight) -> bool:
        if weight.kind == EXPERTS:
            kind = not self.fused_experts
        else:
            kind = weight.kind == LINEAR or (weight.kind == HEAD and self.skipped is not None)
        return kind and not left_alone(weight.module, self.skipped or ())

    def store(self, weight: Weight) -> tuple[Stored, ...]:
        if self.bits == 8:
            return (
                beside(weight, "weight", (weight.rows, weight.columns), INT8, weight.elements),
                beside(weight, "SCB", (weight.rows,), FLOAT32),
                beside(weight, "weight_format", (), UINT8),
            )
        codes = ceil(weight.elements, 2)
        blocks = ceil(weight.elements, BLOCK)
        stored = [
            beside(weight, "weight", (ceil(codes, self.storage.itemsize), 1), self.storage, weight.elements),
            beside(weight, "weight.absmax", (blocks,), UINT8 if self.double else FLOAT32),
            beside(weight, "weight.quant_map", (16,), FLOAT32),
        ]
        if self.double:
            stored.append(beside(weight, "weight.nested_absmax", (ceil(blocks, NESTED_BLOCK),), FLOAT32))
            stored.append(beside(weight, "weight.nested_quant_map", (256,), FLOAT32))
        state = beside(weight, f"weight.quant_state.bitsandbytes__{self.quant_type}", (self._state(weight),), UINT8)
        return (*stored, state)

    def _state(self, weight: Weight) -> int:
        """Characters of the JSON that says how to read the rest."""
        torch_name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(
            weight.dtype.name, weight.dtype.name
        )
        said: dict[str, Any] = {
            "quant_type": self.quant_type,
            "blocksize": BLOCK,
            "dtype": torch_name,
            "shape": [weight.rows, weight.columns],
        }
        if self.double:
            said |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": OFFSET}
        return len(json.dumps(said))

    def parameters_in(self, tensor: StoredTensor) -> int | None:
        name = tensor.name
        if name.endswith((".SCB", ".weight_format", "absmax", "quant_map")) or ".quant_state.bitsandbytes__" in name:
            return 0
        packed = self.bits == 4 and len(tensor.shape) == 2 and tensor.shape[1] == 1
        return tensor.num_elements * self.storage.itemsize * 2 if packed else None
