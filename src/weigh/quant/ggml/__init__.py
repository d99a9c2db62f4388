"""GGML's blocks, as GGUF files hold them: one array of bytes, a row's blocks one behind the other.

Codes and scales are found as `ggml-quants.c` does without an importance matrix, in the same order of fp32 additions
(llama.cpp d99724f2, compiled without fused multiply-adds: builds that fuse differ in up to a byte in a thousand of
some types). Rows must be whole blocks. The types whose codes are points of a grid (IQ1, IQ2, IQ3) are read only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from weigh import dtypes
from weigh.dtypes import UINT8
from weigh.errors import InputError, NotModelledError
from weigh.quant.arrays import pieces
from weigh.quant.base import Packed, Part, Quantizer, matrix, one_of, refuse_infinite
from weigh.quant.blockwise import largest
from weigh.records import dataclass

TYPES = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"), "simple"),
    **dict.fromkeys(("q1_0", "q2_0", "tq1_0", "tq2_0"), "few_bits"),
    **dict.fromkeys(("mxfp4", "nvfp4_ggml"), "fp4"),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), "k"),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), "iq4"),
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"), "grids"),
}
"""The module of each type: it has ENCODE and DECODE, functions of blocks by the type's name."""

Coder = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Ggml(Quantizer):
    """Its settings."""

    type: str = "q4_0"
    """A type's name, as in `weigh dtypes`."""

    def __post_init__(self) -> None:
        one_of(self.type, tuple(TYPES), "type")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        columns, dtype = matrix(shape)[1], dtypes.get(self.type)
        if columns % dtype.elements_per_block:
            raise InputError(
                f"rows of {columns:,} values are no whole blocks of {dtype.elements_per_block}",
                hint=f"{self.type} cannot store them: keep the tensor, or choose another type.",
            )
        return {"blocks": Part((*shape[:-1], dtype.num_bytes(columns)), UINT8)}

    def cut(self, shape: tuple[int, ...]) -> int:
        return matrix(shape)[1]

    def pack(self, array: Any) -> dict[str, Any]:
        encode = self._coder("ENCODE")
        if encode is None:
            raise NotModelledError(f"quantizing to {self.type}", hint="It can be read; choose another type to write.")
        dtype = dtypes.get(self.type)
        blocks = array.reshape(-1, dtype.elements_per_block)
        out = np.empty((len(blocks), dtype.bytes_per_block), np.uint8)
        for piece in pieces(*blocks.shape):
            values = blocks[piece].astype(np.float32, copy=False)
            refuse_infinite(largest(values))
            out[piece] = encode(values)
        return {"blocks": out.reshape(self.layout(array.shape)["blocks"].shape)}

    def unpack(self, packed: Packed) -> Any:
        decode, dtype = self._coder("DECODE"), dtypes.get(self.type)
        assert decode is not None
        blocks = packed.parts["blocks"].reshape(-1, dtype.bytes_per_block)
        out = np.empty((len(blocks), dtype.elements_per_block), np.float32)
        for piece in pieces(*out.shape):
            out[piece] = decode(blocks[piece])
        return out

    def _coder(self, table: str) -> Coder | None:
        module = import_module(f"weigh.quant.ggml.{TYPES[self.type]}")
        coder: Coder | None = getattr(module, table).get(self.type)
        return coder
