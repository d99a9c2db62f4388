"""The header of a `.safetensors` file: 8 bytes of length and a JSON object of names, dtypes, shapes and offsets.

The format: https://github.com/huggingface/safetensors#format. Checked are the rules that its own library checks: no
name twice, every tensor as long as its shape and dtype say, none overlapping, no gaps, nothing behind the end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import InputError
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.opened import damaged, truncated
from weigh.sources.strict_json import check_brackets, parse_object

if TYPE_CHECKING:
    from weigh.sources.opened import Readable

LARGEST = 32 << 20
"""Bytes of a header; 45,395 tensors take 6 MB."""

BITS = {
    spelled: dtypes.get(spelled).bytes_per_block * 8 // dtypes.get(spelled).elements_per_block
    for spelled in (
        *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ"),
        *("F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
    )
}
"""Bits per element of the format's dtypes (its `Dtype::bitsize`)."""

_MOST = 1 << 63


def read_safetensors(file: Readable) -> Checkpoint:
    """The tensors of one file.

    Raises:
        InputError: it is no safetensors file, or contradicts itself.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > LARGEST:
        raise damaged(file.where, f"says that its header has {length:,} bytes; the largest known have a few million")
    if 8 + length > file.size:
        raise truncated(file, 8 + length)
    header = _header(file.read(8, length), file.where)
    metadata = _metadata(header.pop("__metadata__", {}), file.where)
    tensors: dict[str, StoredTensor] = {}
    spans = []
    base = file.name
    for name, entry in header.items():
        try:
            dtype = entry["dtype"]
            shape = tuple(entry["shape"])
            first, last = entry["data_offsets"]
            needed = BITS[dtype]
            for size in shape:
                if type(size) is not int or not 0 <= size < _MOST or needed >= _MOST:
                    raise ValueError
                needed *= size
            exact = type(first) is type(last) is int and len(entry) == 3
        except (KeyError, TypeError, ValueError):
            raise damaged(file.where, f"describes {_short(name)} by {_short(entry)}") from None
        if not exact or first < 0 or (last - first) * 8 != needed:
            raise damaged(file.where, f"gives {_short(name)} of {dtype} {_short(shape)} the bytes {first} to {last}")
        tensors[name] = StoredTensor(name, shape, dtype, last - first, base, 8 + length + first)
        spans.append((first, last))
    _check_spans(file, 8 + length, spans)
    return Checkpoint(tensors, "safetensors", metadata, ((base, file.size),), file.where)


def _header(raw: bytes, where: str) -> dict[str, Any]:
    """The header's object, if it has no key twice.

    To ask that of every object costs as much as to read them all. A header without escapes in which each of the three
    words of a tensor stands as often as there are tensors has none twice, and can be read without asking.
    """
    check_brackets(raw, where)
    if b"\\" not in raw and raw.count(b'"__metadata__"') < 2:
        try:
            header = json.loads(raw.decode())
        except (ValueError, RecursionError):
            header = None
        if isinstance(header, dict):
            count = len(header) - ("__metadata__" in header)
            if all(raw.count(word) == count for word in (b'"dtype"', b'"shape"', b'"data_offsets"')):
                return header
        del header
    try:
        return parse_object(raw, where)
    except InputError as error:
        raise damaged(where, f"has a header that {error.what}") from None


def _metadata(found: Any, where: str) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise damaged(where, "has a __metadata__ that is no object of texts")
    return found


def _check_spans(file: Readable, start: int, spans: list[tuple[int, int]]) -> None:
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise damaged(file.where, "has tensors that overlap" if first < end else f"has a gap at byte {end:,}")
        end = last
    if start + end > file.size:
        raise truncated(file, start + end)
    if start + end < file.size:
        raise damaged(file.where, f"has {file.size - start - end:,} bytes that belong to no tensor")


def _short(thing: Any) -> str:
    try:
        text = repr(thing)
    except (RecursionError, ValueError):  # numbers of more digits than Python prints
        text = type(thing).__name__
    return text if len(text) < 80 else f"{text[:80]}..."
