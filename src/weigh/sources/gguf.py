"""The header of a `.gguf` file: key-value pairs and tensor infos, of every version and either byte order.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Version 1 has 32-bit lengths, later ones have
64 bits; version 3 may be big-endian. A tensor's sizes come fastest first and are turned round here, its bytes are whole
blocks row by row. Arrays longer than `LONGEST` (vocabularies, merges) are passed over: `Array` keeps what they are.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.dtypes import GGML_TYPES
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.opened import Cursor, check_data

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.sources.opened import Readable

LONGEST = 1024
"""Elements of an array that is kept."""
MOST_TENSORS = 1 << 18
MOST_PAIRS = 1 << 16
MOST_DIMENSIONS = 4
"""GGML_MAX_DIMS."""
LONGEST_NAME = 1 << 16
"""Bytes of a key or of a tensor's name; the format allows 65,535 and 64."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The code of every type of value in `struct`; 8 is a text, 9 an array."""
_TEXT, _ARRAY = 8, 9

SPELLED = {
    number: {"fp32": "F32", "fp16": "F16", "fp64": "F64", "nvfp4_ggml": "NVFP4"}.get(
        dtype.name, dtype.name.upper().replace("INT", "I")
    )
    for number, dtype in GGML_TYPES.items()
}
"""The name of every type of tensor, as ggml prints it."""


class Array(NamedTuple):
    """An array that was passed over."""

    type: str
    """What its elements are: "text", or a code of `struct`."""
    length: int
    """How many."""


def read_gguf(file: Readable) -> Checkpoint:
    """The tensors and key-value pairs of one file.

    Raises:
        InputError: it is no GGUF file, or contradicts itself.
    """
    return _Reader(file).read()


def read_pairs(file: Readable) -> dict[str, bytes]:
    """Type and value of every key, as they stand in the file, long arrays too.

    Raises:
        InputError: it is no GGUF file of version 2 or 3, or big-endian.
    """
    reader = _Reader(file)
    _, pairs = reader.begin()
    if reader.order != "<" or reader.length != "Q":
        reader.cursor.refuse("is of version 1 or big-endian, which is not rewritten")
    found = {}
    for _ in range(pairs):
        key = reader.text(limit=LONGEST_NAME)
        start = reader.cursor.at
        reader.value(reader.number("I"))
        found[key] = reader.cursor.data[start : reader.cursor.at]
    return found


class _Reader:
    """One file, read from the front."""

    def __init__(self, file: Readable) -> None:
        self.cursor = Cursor(file)
        self.file = file
        self.order = "<"
        self.length = "Q"

    def read(self) -> Checkpoint:
        tensors, pairs = self.begin()
        metadata = self.pairs(pairs)
        infos = [self.info() for _ in range(tensors)]
        return self.checkpoint(metadata, infos)

    def begin(self) -> tuple[int, int]:
        """The numbers of tensors and of key-value pairs."""
        if self.cursor.take(4) != b"GGUF":
            self.cursor.refuse("is no GGUF file")
        version = self.number("I")
        if version >> 16:  # its low half is zero in the other byte order
            self.order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (1, 2, 3):
            self.cursor.refuse(f"is GGUF version {version}, which nobody has published")
        if version == 1:
            self.length = "I"
        tensors, pairs = self.number(self.length), self.number(self.length)
        if tensors > MOST_TENSORS or pairs > MOST_PAIRS:
            self.cursor.refuse(f"says that it has {tensors:,} tensors and {pairs:,} key-value pairs")
        return tensors, pairs

    def number(self, code: str) -> Any:
        kind = self.order + code
        return struct.unpack(kind, self.cursor.take(struct.calcsize(kind)))[0]

    def text(self, errors: str = "strict", limit: int | None = None) -> str:
        length = self.number(self.length)
        if limit is not None and length > limit:
            self.cursor.refuse(f"has a name of {length:,} bytes")
        try:
            return self.cursor.take(length).decode("utf-8", errors)
        except UnicodeDecodeError:
            self.cursor.refuse("has a name that is not UTF-8")

    def pairs(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text(limit=LONGEST_NAME)
            if key in found:
                self.cursor.refuse(f"has {key[:80]!r} twice")
            found[key] = self.value(self.number("I"))
        return found

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text("replace")
        if kind == _ARRAY:
            return self.array()
        if kind not in SCALARS:
            self.cursor.refuse(f"has a value of type {kind}, which there is not")
        if kind == 7:  # a byte; struct would take any but 0 for true
            return self.number("B") != 0
        return self.number(SCALARS[kind])

    def array(self) -> list[Any] | Array:
        kind, length = self.number("I"), self.number(self.length)
        if kind == _TEXT:
            if length <= LONGEST:
                return [self.text("replace") for _ in range(length)]
            self.skip_texts(length)
            return Array("text", length)
        if kind not in SCALARS:
            self.cursor.refuse(f"has an array of type {kind}")
        code = SCALARS[kind]
        size = struct.calcsize("<" + code)
        if length <= LONGEST:
            return list(struct.unpack(f"{self.order}{length}{code}", self.cursor.take(length * size)))
        self.cursor.need(length * size)
        self.cursor.at += length * size
        return Array(code, length)

    def skip_texts(self, count: int) -> None:
        """Pass over texts: most of a header, so the loop does as little as it can."""
        cursor, width = self.cursor, struct.calcsize("<" + self.length)
        unpack = struct.Struct(self.order + self.length).unpack_from
        while count:
            data, at, end = cursor.data, cursor.at, len(cursor.data) - width
            while count and at <= end:
                at += width + unpack(data, at)[0]
                count -= 1
            cursor.need(at - cursor.at)
            cursor.at = at
            if count:
                cursor.need(width)

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape in PyTorch's order, type and offset of a tensor."""
        name = self.text(limit=LONGEST_NAME)
        dimensions = self.number("I")
        if dimensions > MOST_DIMENSIONS:
            self.cursor.refuse(f"gives {name[:80]!r} {dimensions} dimensions")
        sizes = [self.number(self.length) for _ in range(dimensions)]
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")

    def checkpoint(self, metadata: dict[str, Any], infos: list[tuple[str, tuple[int, ...], int, int]]) -> Checkpoint:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            self.cursor.refuse(f"has an alignment of {alignment!r}")
        start = -(-self.cursor.at // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        spans = []
        for name, shape, kind, offset in infos:
            if name in tensors:
                self.cursor.refuse(f"has the tensor {name[:80]!r} twice")
            if kind not in GGML_TYPES:
                self.cursor.refuse(f"stores {name[:80]!r} in the type {kind}, which weigh does not know")
            if offset % alignment:
                self.cursor.refuse(f"has {name[:80]!r} at byte {offset:,}, between the marks of its alignment")
            num_bytes = self.num_bytes(name, shape, GGML_TYPES[kind])
            tensors[name] = StoredTensor(name, shape, SPELLED[kind], num_bytes, self.file.name, start + offset)
            spans.append((offset, offset + num_bytes))
        if spans:
            check_data(self.file, start, spans)
        return Checkpoint(tensors, "gguf", metadata, ((self.file.name, self.file.size),), self.file.where)

    def num_bytes(self, name: str, shape: tuple[int, ...], dtype: DType) -> int:
        row = shape[-1] if shape else 1
        if row % dtype.elements_per_block:
            self.cursor.refuse(f"has rows of {row:,} in {name[:80]!r}, no whole blocks of {dtype.name}")
        found = row // dtype.elements_per_block * dtype.bytes_per_block
        for size in shape[:-1]:
            found *= size
        return found
