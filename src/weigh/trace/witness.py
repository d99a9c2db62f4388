"""Recorded witnesses: the event list of a real PyTorch run, traced on fake CUDA tensors, read as a `Trace`.

The file is gzipped JSON: `strings`; `storages` as rows (number, bytes, op, phase, module, category, shape, dtype),
strings given by their index; `events` as plus or minus a storage's number; `marks` as rows (event, phase, live bytes).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from weigh.dtypes import get
from weigh.errors import InputError, reason
from weigh.trace.events import (
    ACTIVATION,
    BACKWARD,
    BUFFER,
    CLIP,
    DECODE,
    FORWARD,
    GRADIENT,
    INPUT,
    KV_CACHE,
    LOAD,
    OPTIMIZER_STATE,
    PREFILL,
    STEP,
    TEMPORARY,
    WEIGHT,
    Allocation,
    Mark,
    Trace,
)

PURPOSE = {
    "param": WEIGHT,
    "buffer": BUFFER,
    "input": INPUT,
    "opt": OPTIMIZER_STATE,
    "grad": GRADIENT,
    "activation": ACTIVATION,
    "recompute": ACTIVATION,
    "temp_bwd": TEMPORARY,
    "temp_opt": TEMPORARY,
    "kv_cache": KV_CACHE,
    "other:setup": TEMPORARY,
}
"""The recorder's categories in this library's words."""

PHASE = {
    "setup": LOAD,
    "fwd": FORWARD,
    "bwd": BACKWARD,
    "clip": CLIP,
    "opt": STEP,
    "fwd-prefill": PREFILL,
    "fwd-decode": DECODE,
}
"""The recorder's phases, without the number of the step."""


def read_witness(path: str) -> Trace:
    """The recorded run at `path`.

    Raises:
        InputError: the file cannot be read, or is no recorded event list.
    """
    try:
        document = json.loads(gzip.decompress(Path(path).read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"cannot be read: {reason(error)}", where=path, hint="Give a recorded .json.gz.") from None
    try:
        return _trace(document)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"is no recorded event list ({type(error).__name__}: {error})"
        raise InputError(problem, where=path, hint="It needs strings, storages, events and marks.") from None


def _trace(document: dict[str, Any]) -> Trace:
    strings: list[str] = document["strings"]
    allocations: list[Allocation] = []
    index: dict[int, int] = {}
    for number, num_bytes, op, phase, module, category, shape, dtype in document["storages"]:
        index[number] = len(allocations) + 1
        path = strings[module]
        allocations.append(
            Allocation(
                num_bytes,
                strings[op],
                "" if path == "(root)" else path,
                PURPOSE[strings[category]],
                _phase(strings[phase])[0],
                tuple(shape),
                get(strings[dtype]).name,
                None,
            )
        )
    events = [index[e] if e > 0 else -index[-e] for e in document["events"]]
    marks = [Mark(event, *_phase(name)) for event, name, _ in document["marks"] if name != "end"]
    return Trace(allocations, events, marks)


def _phase(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(\d*)", name)
    assert found is not None
    return PHASE[found[1]], int(found[2] or 0)
