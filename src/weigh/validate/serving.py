"""Cases of serving: what a runtime's cache takes, or how many tokens it holds in the budget that was printed.

Where the size of a GPU is not printed, the budget of its cache is an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh import dtypes, models
from weigh.errors import NotModelledError, WeighError
from weigh.ghost.state import recording
from weigh.models.layout import FULL, SLIDING, LayerCache
from weigh.recipes.keeping import Keeping, keep
from weigh.runtimes import llama_cpp, sglang, vllm

if TYPE_CHECKING:
    from weigh.dtypes import DType

_LLAMA_CPP = {"cache_type_k": "type_k", "cache_type_v": "type_v"} | {
    name: name for name in ("n_ubatch", "n_seq_max", "kv_unified", "swa_full", "mla_attn")
}


def serving_case(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """The figures of a case's cache that follow from shapes.

    Raises:
        WeighError: its runtime is not described, or the case does not say enough.
    """
    runtime, serving = str(row.get("runtime")), row.get("serving") or {}
    if runtime in ("llama.cpp", "ik_llama.cpp"):
        if serving.get("n_ctx") is None:
            raise WeighError("the case does not say how long its context is")
        given = {ours: serving[theirs] for theirs, ours in _LLAMA_CPP.items() if serving.get(theirs) is not None}
        layers = llama_cpp.layout(row["model"]["gguf"])
        return llama_cpp.cache_bytes(layers, llama_cpp.Cache(serving["n_ctx"], **given))
    layers = _layers(row, where)
    if runtime == "sglang" and any(layer.kind == SLIDING for layer in layers):
        return _pools(row, layers)
    budget = row["measured"].get("kv_cache")
    if budget is None:
        raise WeighError("the case prints neither a GPU's size nor the budget of its cache")
    tensor = _ranks(row)
    if runtime == "vllm":
        return _vllm(row, layers, budget, tensor)
    per_token = _per_token(layers, dtypes.BFLOAT16, tensor)
    if runtime == "sglang":
        page, requests = serving.get("page_size") or 1, serving.get("max_running_requests")
        found = {"kv_cache_tokens": (budget // per_token - page) // page * page}
        if requests and any(layer.states for layer in layers):
            found |= sglang.state_bytes(layers, requests, dtypes.BFLOAT16, tensor)
        return found
    if runtime == "tensorrt-llm":
        return {"kv_cache_tokens": budget // per_token // 32 * 32}
    raise NotModelledError(f"the cache of {runtime}")


def _layers(row: Mapping[str, Any], where: str) -> tuple[LayerCache, ...]:
    config, printed = row["model"].get("config"), (row.get("extra") or {}).get("kv_layout")
    if isinstance(config, dict):
        with recording():
            return models.build(config, dtypes.BFLOAT16, where).cache_layout()
    if not printed:
        raise WeighError("the case has no config")
    heads, width = printed["heads"], printed["head_dim"]
    full, window = LayerCache(FULL, heads, width, width), LayerCache(SLIDING, heads, width, width)
    return (full,) * int(printed["full_layers"]) + (window,) * int(printed["sliding_layers"])


def _ranks(row: Mapping[str, Any]) -> int:
    parallel, serving = row.get("parallel") or {}, row.get("serving") or {}
    tensor = parallel.get("tensor") or 1
    return sglang.attention_ranks(tensor, parallel.get("data") or 1, bool(serving.get("enable_dp_attention")))


def _per_token(layers: tuple[LayerCache, ...], dtype: DType, tensor: int, kv_dtype: str = "auto") -> int:
    kept = keep(layers, Keeping(1, kv_dtype=kv_dtype, tensor=tensor), dtype)
    return sum(layer.bytes_per_token for layer in kept)


def _vllm(row: Mapping[str, Any], layers: tuple[LayerCache, ...], budget: int, tensor: int) -> dict[str, int]:
    serving = row["serving"]
    if any(layer.states for layer in layers):
        speculative = str((serving.get("speculative") or {}).get("printed", ""))
        drafts = int("".join(c for c in speculative.partition("num_speculative_tokens")[2] if c.isdecimal()) or 0)
        mtp = 1 if "mtp" in speculative else 0
        longest = serving["max_model_len"]
        return {"kv_cache_tokens": vllm.hybrid_tokens(layers, budget, dtypes.BFLOAT16, longest, drafts, mtp, tensor)}
    if any(layer.kind == SLIDING and layer.window is None for layer in layers):
        raise WeighError("the case does not say how wide its windows are")
    how = (layers, budget, dtypes.BFLOAT16, serving.get("kv_cache_dtype") or "auto", tensor)
    return {"kv_cache_tokens": vllm.tokens(*how), "kv_blocks": vllm.blocks(*how)}


def _pools(row: Mapping[str, Any], layers: tuple[LayerCache, ...]) -> dict[str, int]:
    """Windows and full attention in pools of their own, each with its own budget."""
    found = {}
    for name, kind in (("swa", SLIDING), ("full", FULL)):
        budget = row["measured"].get(f"kv_cache_{name}")
        if budget is not None:
            per_token = _per_token(tuple(layer for layer in layers if layer.kind == kind), dtypes.BFLOAT16, 1)
            found[f"kv_cache_tokens_{name}"] = budget // per_token - 1
    return found
