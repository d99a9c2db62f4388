"""The inner loops in C where `weigh-kernels` is installed: the bits of the numpy beside them, several times as fast.

numpy is the definition. `WEIGH_KERNELS=0` does without, `WEIGH_THREADS` says how many threads.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

VERSION = 1
"""The interface that is spoken here."""
INT8, FOUR_BIT, TABLE = 0, 1, 2
"""What codes are: linear int8; two of 4 bits in a byte; 8 bits that a table explains."""
LARGEST_BLOCK = 4096


@cache
def loaded() -> Any:
    """The package; None where it is missing, speaks another interface, or is not to be used."""
    if os.environ.get("WEIGH_KERNELS") == "0":
        return None
    try:
        import weigh_kernels
    except ImportError:
        return None
    return weigh_kernels if weigh_kernels.VERSION == VERSION else None


def quantize(kind: int, array: Any, block: int, codes: Any, absmax: Any, first: Any = b"", second: Any = b"") -> bool:
    """Fill the codes and scales of blocks, and say so; False where numpy has to."""
    package = loaded()
    if package is None or array.dtype not in (np.float32, ml_dtypes.bfloat16) or not array.size:
        return False
    if block > LARGEST_BLOCK or (kind == FOUR_BIT and array.size % 2):
        return False
    is_bf16 = array.dtype == ml_dtypes.bfloat16
    flat = array.reshape(-1)
    package.quantize(kind, flat.view(np.uint16) if is_bf16 else flat, is_bf16, block, codes, absmax, first, second)
    return True


def dequantize(kind: int, codes: Any, scales: Any, block: int, out: Any, values: Any = b"") -> bool:
    """Fill `out` (fp32) with the values of codes, and say so; False where numpy has to."""
    package = loaded()
    if package is None or block > LARGEST_BLOCK or not out.size:
        return False
    package.dequantize(kind, np.ascontiguousarray(codes), np.ascontiguousarray(scales), block, out, values)
    return True
