"""What the reference libraries gave, recorded with their versions: `cases("bnb_quantize_4bit")`."""

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

PATH = Path(__file__).parents[1] / "data" / "golden.json.gz"


@cache
def _read() -> Any:
    found = json.loads(gzip.decompress(PATH.read_bytes()))
    arrays = [
        np.frombuffer(base64.b85decode(text), getattr(ml_dtypes, dtype, dtype)).reshape(shape)
        for dtype, shape, text in found["arrays"]
    ]
    return {name: _with_arrays(file["cases"], arrays) for name, file in found["files"].items()}


def _with_arrays(value: Any, arrays: list[Any]) -> Any:
    if isinstance(value, dict):
        found = {k: v if k == "array" else _with_arrays(v, arrays) for k, v in value.items()}
        return arrays[found["array"]] if set(found) == {"array"} else found
    return [_with_arrays(v, arrays) for v in value] if isinstance(value, list) else value


def cases(name: str) -> Any:
    return _read()[name]


def params(name: str, *keys: str) -> Any:
    """For `pytest.mark.parametrize`, with ids of those keys."""
    return {"argnames": "case", "argvalues": cases(name), "ids": lambda c: "-".join(str(c[key]) for key in keys)}


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
