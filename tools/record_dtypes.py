"""Record what PyTorch and ml_dtypes say about number formats, as JSON for the tests.

Usage, where both are installed: python tools/record_dtypes.py tests/data
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

PROMOTED = """
    bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 complex128
    float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu
""".split()
FLOATS = """
    float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu
    float6_e2m3fn float6_e3m2fn float4_e2m1fn
""".split()


def promotion() -> dict[str, Any]:
    """The table of `torch.promote_types`; null where it refuses."""
    table: dict[str, dict[str, str | None]] = {}
    for a in PROMOTED:
        for b in PROMOTED:
            try:
                joined = str(torch.promote_types(getattr(torch, a), getattr(torch, b))).removeprefix("torch.")
            except RuntimeError:
                joined = None
            table.setdefault(a, {})[b] = joined
    return {"source": f"torch.promote_types, torch {torch.__version__}", "table": table}


def floats() -> dict[str, Any]:
    """The limits of every float, from the `finfo` of numpy or ml_dtypes."""
    table = {}
    for name in FLOATS:
        info = ml_dtypes.finfo(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.finfo(name)
        table[name] = {
            "bits": int(info.bits),
            "exponent_bits": int(info.nexp),
            "mantissa_bits": int(info.nmant),
            "max": float(info.max),
            "min_normal": float(info.smallest_normal),
            "min_subnormal": float(info.smallest_subnormal),
            "epsilon": float(info.eps),
        }
    return {"source": f"finfo of numpy {np.__version__} and ml_dtypes {ml_dtypes.__version__}", "table": table}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "torch_promotion.json").write_text(json.dumps(promotion(), indent=1) + "\n")
    (folder / "float_limits.json").write_text(json.dumps(floats(), indent=1) + "\n")
