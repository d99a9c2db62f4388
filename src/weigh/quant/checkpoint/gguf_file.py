"""The header of a GGUF file (version 3): key-value pairs, and where every tensor lies."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from weigh.dtypes import GGML_TYPES
from weigh.quant.checkpoint.layout import File

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.quant.checkpoint.layout import Output

ALIGNMENT = 32
_NUMBERS = {dtype: number for number, dtype in GGML_TYPES.items()}
_SCALARS = {"uint32": (4, "I"), "int32": (5, "i"), "float32": (6, "f"), "bool": (7, "?")}
_TEXT, _ARRAY = 8, 9


def gguf_file(name: str, pairs: Mapping[str, bytes], outputs: Sequence[Output]) -> File:
    """The file for these tensors; `pairs` are types and values as `value` makes them."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(outputs), len(pairs))
    head += b"".join(_text(key) + value for key, value in pairs.items())
    infos, at, starts = b"", 0, {}
    for output in outputs:
        infos += _text(output.name) + struct.pack("<I", len(output.shape))
        infos += struct.pack(f"<{len(output.shape)}Q", *reversed(output.shape))
        infos += struct.pack("<IQ", _NUMBERS[output.dtype], at)
        starts[output.name] = at
        at += -(-output.num_bytes // ALIGNMENT) * ALIGNMENT
    head += infos
    head += bytes(-len(head) % ALIGNMENT)
    return File(name, head, {key: len(head) + start for key, start in starts.items()}, len(head) + at)


def value(kind: str, found: Any) -> bytes:
    """Type and value of a pair: "text", "uint32", "int32", "float32", "bool", or one of them with "[]" for many.

    >>> value("uint32", 7).hex()
    '0400000007000000'
    """
    if kind.endswith("[]"):
        kind = kind.removesuffix("[]")
        number = _TEXT if kind == "text" else _SCALARS[kind][0]
        return struct.pack("<IIQ", _ARRAY, number, len(found)) + b"".join(_bare(kind, each) for each in found)
    number = _TEXT if kind == "text" else _SCALARS[kind][0]
    return struct.pack("<I", number) + _bare(kind, found)


def _bare(kind: str, found: Any) -> bytes:
    return _text(found) if kind == "text" else struct.pack(f"<{_SCALARS[kind][1]}", found)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
