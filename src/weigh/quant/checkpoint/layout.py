"""Where every byte of the new checkpoint goes, before any is made: files, headers, offsets.

safetensors: a header of JSON, then the tensors, those of wide elements first, so that all of them are aligned.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError
from weigh.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weigh.dtypes import DType

SPELLED = {
    "fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
}  # fmt: skip
"""Our names of formats in safetensors' spelling."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that will be stored."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    spelled: str
    """The format as the file spells it."""

    @property
    def num_bytes(self) -> int:
        """Rows of block formats are whole blocks."""
        if self.dtype.elements_per_block == 1:
            return prod(self.shape) * self.dtype.bytes_per_block
        return prod(self.shape[:-1]) * self.dtype.num_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class File:
    """A file that will be written."""

    name: str
    header: bytes
    """Its first bytes."""
    starts: Mapping[str, int]
    """First byte of every tensor in it."""
    size: int
    """All its bytes."""


def safetensors_files(outputs: Sequence[Output], largest: int) -> tuple[File, ...]:
    """The files for these tensors, each of at most `largest` bytes of tensors unless one alone has more.

    One file is `model.safetensors`, several count, as transformers names them.
    """
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.num_bytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.num_bytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    return tuple(_safetensors(name, shard) for name, shard in zip(names, shards, strict=True))


def _safetensors(name: str, outputs: Iterable[Output]) -> File:
    placed: dict[str, tuple[Output, int]] = {}
    at = 0
    for output in sorted(outputs, key=lambda o: -o.dtype.bytes_per_block):
        placed[output.name] = output, at
        at += output.num_bytes
    if any(output.name == "__metadata__" for output, _ in placed.values()):
        raise InputError("is no name for a tensor", where="__metadata__")
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor, (output, start) in placed.items():
        said[tensor] = {
            "dtype": output.spelled,
            "shape": list(output.shape),
            "data_offsets": [start, start + output.num_bytes],
        }
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return File(name, header, {n: len(header) + start for n, (_, start) in placed.items()}, len(header) + at)


def index(files: Sequence[File], total: int) -> dict[str, Any]:
    """The `model.safetensors.index.json` of several files."""
    placed = {name: file.name for file in files for name in file.starts}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
