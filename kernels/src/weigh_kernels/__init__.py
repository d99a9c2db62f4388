"""weigh's quantizers in C: blocks of fp32 or bf16 numbers to codes and scales, and back, with the bits of its numpy.

Arrays are anything with a contiguous buffer. Long ones are cut at blocks and handled by several threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from weigh_kernels import _kernels

VERSION = 1
"""Of the interface: weigh uses no other."""
INT8, FOUR_BIT, TABLE = 0, 1, 2
"""What codes are: linear int8, two of 4 bits in a byte, or 8 bits that a table explains."""
PIECE = 1 << 20
"""Values that are worth a thread."""
LARGEST_BLOCK = 4096


def quantize(
    kind: int, source: Any, is_bf16: bool, block: int, codes: Any, absmax: Any, first: Any = b"", second: Any = b""
) -> None:
    """Fill `codes` and `absmax` from the numbers of `source`.

    The tables are the borders and the codes of 4 bits, or the two of 8 bits. A block has at most 4,096 numbers; of
    4 bits an even number of them.
    """
    source, codes, absmax = (memoryview(x).cast("B") for x in (source, codes, absmax))
    width = 2 if is_bf16 else 4
    count = len(source) // width

    def piece(start: int, stop: int) -> None:
        at = source[start * width : stop * width]
        out = codes[start // 2 : -(-stop // 2)] if kind == FOUR_BIT else codes[start:stop]
        scales = absmax[start // block * 4 : -(-stop // block) * 4]
        _kernels.quantize(kind, is_bf16, block, at, out, scales, first, second)

    _in_pieces(piece, count, block)


def dequantize(kind: int, codes: Any, scales: Any, block: int, out: Any, values: Any = b"") -> None:
    """Fill `out` (fp32) with the values of `codes` times the scale of their block."""
    codes, scales, out = (memoryview(x).cast("B") for x in (codes, scales, out))

    def piece(start: int, stop: int) -> None:
        at = codes[start // 2 : -(-stop // 2)] if kind == FOUR_BIT else codes[start:stop]
        own = scales[start // block * 4 : -(-stop // block) * 4]
        _kernels.dequantize(kind, block, at, own, values, out[start * 4 : stop * 4])

    _in_pieces(piece, len(out) // 4, block)


def _in_pieces(piece: Any, count: int, block: int) -> None:
    threads = min(_threads(), count // PIECE)
    if threads < 2:
        piece(0, count)
        return
    unit = block if block % 2 == 0 else 2 * block
    step = -(-count // threads // unit) * unit
    starts = range(0, count, step)
    for done in _pool().map(lambda start: piece(start, min(start + step, count)), starts):
        assert done is None


def _threads() -> int:
    if said := os.environ.get("WEIGH_THREADS"):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads())
