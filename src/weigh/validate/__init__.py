"""Predictions beside references: every row of a file of recorded witnesses or measured cases.

A witness row records one real PyTorch step, traced on fake CUDA tensors: its settings, and under `bytes` (and
`bytes_r512`, every storage rounded up to 512 bytes) what was live when. A measured case records what a GPU used,
under `measured`. Each key becomes one line: reference, prediction, relative error, or the reason why there is no
prediction yet. What a row records as an answer is never read as an input.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weigh.errors import InputError, WeighError, reason
from weigh.validate.cases import predict_case
from weigh.validate.lines import Line, Validation
from weigh.validate.llama_cpp import unpredicted
from weigh.validate.rounding import rounding
from weigh.validate.witnesses import generation_recipe, predict_witness, training_recipe

__all__ = ["Line", "Validation", "generation_recipe", "training_recipe", "validate"]


def validate(path: str) -> Validation:
    """Predict every row of a JSON-lines file.

    Raises:
        InputError: the file cannot be read, or a line is no row.
    """
    lines: list[Line] = []
    for number, row in _rows(path):
        lines.extend(_validate_row(row, f"{path}:{number}"))
    return Validation(tuple(lines))


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"is not JSON ({error})", where=f"{path}:{number}", hint="Give one JSON object a line."
                    ) from None
                if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                    raise InputError("is no row", where=f"{path}:{number}", hint='A row is an object with an "id".')
                yield number, row
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {reason(error)}", where=path, hint="Give a file of JSON lines.") from None


def _validate_row(row: Mapping[str, Any], where: str) -> list[Line]:
    groups = tuple(_groups(row))
    measured = "measured" in row
    wanted = _numbers(row.get("measured")) if measured else _numbers(row.get("bytes"))
    if not measured:
        wanted |= {f"{k}_r512": v for k, v in _numbers(row.get("bytes_r512")).items()}
    predict = predict_case if measured else predict_witness
    if not wanted:
        reason = f"the row records no bytes ({row['error']})" if "error" in row else "the row records no bytes"
        return [Line(row["id"], "bytes", None, None, reason, groups)]
    try:
        predicted, reason = predict(row, where), ""
    except WeighError as error:
        predicted, reason = {}, str(error)
    lines = []
    for key, value in wanted.items():
        why = None if key in predicted else reason or unpredicted(row, key) or _why(key)
        printed = rounding(row, key) if measured else 0.0
        lines.append(Line(row["id"], key, value, predicted.get(key), why, groups, printed))
    return lines


def _why(metric: str) -> str:
    """Why there is no prediction of a metric where there are some of others."""
    if metric == "checkpoint_elements":
        return "what a file stores besides the parameters is known from its header only"
    if metric.startswith("kv_cache") and "tokens" not in metric:
        return "the memory of the GPU decides it, or where that is not printed it is an input"
    if metric.startswith("memory_unspecified"):
        return "the source does not say what was measured"
    return "weigh does not predict this metric"


def _numbers(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _groups(row: Mapping[str, Any]) -> Iterator[str]:
    model = row.get("model")
    config = row.get("config") or (model.get("config") if isinstance(model, dict) else None) or {}
    yield f"family {row.get('family') or config.get('model_type') or 'unknown'}"
    yield f"kind {row.get('kind') or row.get('task') or 'unknown'}"
    for key, value in sorted((row.get("settings") or {}).items()):
        if value is not None and value is not False and not isinstance(value, dict):
            yield f"{key} {value}"
        elif isinstance(value, dict):
            yield key
