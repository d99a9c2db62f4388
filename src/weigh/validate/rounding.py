"""How far a published figure may be off because it was printed with few digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCKS = {"tensorrt-llm": 32}
"""Tokens of a block, by runtime, where a case does not say; 16 elsewhere."""


def rounding(row: Mapping[str, Any], metric: str) -> float:
    """Half of the last printed digit, in bytes or as a count.

    Where a budget of bytes is an input, tokens and blocks are off by what its rounding holds, and by one block more.
    """
    printed = _resolution(row, metric)
    budget = _budget(metric)
    if row.get("runtime") in ("llama.cpp", "ik_llama.cpp") or budget is None or not row["measured"].get(budget):
        return printed
    per_count: float = row["measured"][budget] / row["measured"][metric]
    serving = row.get("serving") or {}
    block = 1 if metric == "kv_blocks" else BLOCKS.get(str(row.get("runtime")), serving.get("page_size") or 16)
    return _resolution(row, budget) / per_count + block


def _resolution(row: Mapping[str, Any], metric: str) -> float:
    """A case gives one for all its metrics, or one for each."""
    found = row.get("resolution") or 0
    stated = found if isinstance(found, dict) else (row.get("extra") or {}).get("resolution_by_metric") or {}
    return float(stated.get(metric, 0 if isinstance(found, dict) else found))


def _budget(metric: str) -> str | None:
    """The metric of the bytes that were divided into what `metric` counts."""
    if metric == "kv_blocks":
        return "kv_cache"
    return metric.replace("kv_cache_tokens", "kv_cache") if metric.startswith("kv_cache_tokens") else None
