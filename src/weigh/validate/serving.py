"""Cases of serving: what a runtime's cache takes, or how many tokens it holds in the budget that was printed.

Where the size of a GPU is not printed, the budget of its cache is an input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weigh import dtypes, models
from weigh.errors import NotModelledError, UnknownNameError, WeighError
from weigh.ghost.state import recording
from weigh.hardware import devices
from weigh.models.layout import FULL, SLIDING, LayerCache
from weigh.recipes.keeping import Keeping, keep
from weigh.runtimes import engine, fused, sglang, sharding, tensorrt_llm, vllm
from weigh.runtimes.engine import Place, Served, ServeJob
from weigh.sources.source import Source
from weigh.validate.llama_cpp import llama_cpp_case

if TYPE_CHECKING:
    from weigh.dtypes import DType


def serving_case(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """The figures of a case's cache that follow from shapes.

    Raises:
        WeighError: its runtime is not described, or the case does not say enough.
    """
    runtime = str(row.get("runtime"))
    if runtime in ("llama.cpp", "ik_llama.cpp"):
        return llama_cpp_case(row)
    if runtime == "vllm":
        return _vllm(row, where)
    return _weights_of_sglang(row, where) | _cache(row, where, runtime)


def _cache(row: Mapping[str, Any], where: str, runtime: str) -> dict[str, int]:
    """Tokens that there is room for in the budget that was printed."""
    serving, layers = row.get("serving") or {}, _layers(row, where)
    if runtime == "sglang" and any(layer.kind == SLIDING for layer in layers):
        return _pools(row, layers)
    budget = row["measured"].get("kv_cache")
    if budget is None:
        raise WeighError("the case prints neither a GPU's size nor the budget of its cache")
    tensor = _ranks(row)
    per_token = _per_token(layers, dtypes.BFLOAT16, tensor)
    if runtime == "sglang":
        page, requests = serving.get("page_size") or 1, serving.get("max_running_requests")
        found = {"kv_cache_tokens": (budget // per_token - page) // page * page}
        found |= _pool_of_sglang(row, per_token, page)
        found |= _draft_of_sglang(row, layers, tensor, found["kv_cache_tokens"])
        if requests and any(layer.states for layer in layers):
            found |= sglang.state_bytes(layers, requests, dtypes.BFLOAT16, tensor)
        return found
    if runtime == "tensorrt-llm":
        return {"kv_cache_tokens": tensorrt_llm.tokens(budget, per_token)}
    raise NotModelledError(f"the cache of {runtime}")


def _pool_of_sglang(row: Mapping[str, Any], per_token: int, page: int) -> dict[str, int]:
    """Bytes of the pool, from the free memory that was printed before and after loading (`profile_max_num_token`)."""
    free = (row.get("extra") or {}).get("free_device_memory_bytes") or {}
    fraction = (row.get("serving") or {}).get("mem_fraction_static")
    before, after = free.get("avail_mem_before_load"), free.get("avail_mem_after_load")
    if not before or not after or fraction is None:
        return {}
    rest = int(after[0] - before[0] * (1 - fraction))
    tokens = rest // per_token + _headroom(row)
    num_bytes = (tokens // page * page + page) * per_token
    return {"kv_cache": num_bytes, "kv_cache_k": num_bytes // 2, "kv_cache_v": num_bytes // 2}


def _headroom(row: Mapping[str, Any]) -> int:
    """Tokens of the pool for drafts, one branch of one token less than are checked (none of the logs names them)."""
    serving = row.get("serving") or {}
    draft, requests = serving.get("speculative") or {}, serving.get("max_running_requests")
    if draft.get("algorithm") not in sglang.DRAFTING or not requests:
        return 0
    return sglang.headroom(requests, draft["num_draft_tokens"] - 1, 1, draft["num_draft_tokens"])


def _draft_of_sglang(
    row: Mapping[str, Any], layers: tuple[LayerCache, ...], tensor: int, tokens: int
) -> dict[str, int]:
    """The draft's cache: a layer like the model's, for every token of the pool."""
    serving = row.get("serving") or {}
    if (serving.get("speculative") or {}).get("algorithm") not in sglang.DRAFTING:
        return {}
    kept = [layer for layer in layers if layer.heads or layer.latent_width]
    num_bytes = sglang.pool_bytes(kept[-1:], tokens, serving.get("page_size") or 1, dtypes.BFLOAT16, tensor)
    found = {"kv_cache_tokens_draft": tokens, "kv_cache_draft": num_bytes}
    return found | {"kv_cache_k_draft": num_bytes // 2, "kv_cache_v_draft": num_bytes // 2}


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


def _weights_of_sglang(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """What loading takes off the device's free memory: whole segments of the allocator."""
    config, parallel, serving = row["model"].get("config"), row.get("parallel") or {}, row.get("serving") or {}
    method = ((row.get("weights") or {}).get("quantization") or {}).get("method")
    if row.get("runtime") != "sglang" or not isinstance(config, dict) or method not in (None, "int8"):
        return {}
    served = Served(Source(where, config, where, where), dtypes.BFLOAT16)
    tensor, data = parallel.get("tensor") or 1, parallel.get("data") or 1
    attention = sglang.attention_ranks(tensor, data, bool(serving.get("enable_dp_attention")))
    rank = sharding.Rank(attention, tensor, (parallel.get("expert") or 1) > 1)
    return {"weights": fused.loaded(served, rank, method and METHODS[method]).reserved}


METHODS = {"awq": "awq_marlin", "fp8": "compressed-tensors-fp8", "int8": "w8a8", "int4": "w4a16"} | {
    name: name for name in ("mxfp4", "nvfp4")
}
"""A case's words for how weights are stored, and the checkpoints that people publish so."""
LARGEST_CAPTURE = 512
"""Tokens of the largest step that vLLM captures where nobody says."""
OPTIONS = (
    "block_size enable_lora enable_prefix_caching enforce_eager gpu_memory_utilization max_num_batched_tokens "
    "max_num_seqs"
).split()
"""Settings that a case and vLLM name alike."""


def _vllm(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """What vLLM prints: weights, the profiling run's peak, and the cache.

    Where the GPU's size is printed the cache's budget is predicted, else what fits in the budget that is printed.
    """
    config, serving, parallel = row["model"].get("config"), row.get("serving") or {}, row.get("parallel") or {}
    if not isinstance(config, dict):
        raise WeighError("the case has no config, which says how its weights and its cache are stored")
    measured, spelled = row["measured"], (row.get("weights") or {}).get("dtype") or "bf16"
    draft = str((serving.get("speculative") or {}).get("printed", ""))
    served = Served(Source(where, config, where, where), dtypes.get(spelled))
    memory = (row.get("device") or {}).get("memory_bytes")
    budget = None if memory else measured.get("kv_cache")
    job = ServeJob(
        context=None if served.longest is None else min(serving.get("max_model_len") or served.longest, served.longest),
        kv_dtype=serving.get("kv_cache_dtype") or "auto",
        quantization=_method(row),
        tensor=parallel.get("tensor") or 1,
        pipeline=parallel.get("pipeline") or 1,
        data=parallel.get("data") or 1,
        expert=(parallel.get("expert") or 1) > 1,
    )
    given = {name: serving[name] for name in OPTIONS if serving.get(name) is not None}
    captured = serving.get("cudagraph_capture_sizes_max")
    if captured and captured < LARGEST_CAPTURE and "max_num_seqs" not in given:
        given["max_num_seqs"] = captured // 2  # it is twice the requests, up to a limit
    options = vllm.VllmOptions(
        **given,
        kv_cache_memory_bytes=budget,
        num_speculative_tokens=int("".join(filter(str.isdecimal, draft.partition("num_speculative_tokens")[2])) or 0),
        speculative_method="mtp" if "mtp" in draft else None,
        max_cudagraph_capture_size=captured or None,
        language_model_only=_is_blind(serving.get("limit_mm_per_prompt")),
        alloc_conf=_extra(row).get("alloc_conf"),
        runner="pooling" if "without an output layer" in str(_extra(row).get("config_parameters_note")) else "auto",
    )
    release = engine.version(vllm.ENGINE, str(row.get("runtime_version") or ""))
    named = (row.get("device") or {}).get("name")
    device = devices.get_device(named) if named and memory is None and _is_known(named) else None
    printed = vllm.ENGINE.launch(served, job, options, Place(device, known_bytes=memory), release).printed
    wanted = {"weights", "activation_peak", "torch_peak", "cuda_graph"}
    if budget is not None or memory:
        wanted |= {"kv_cache_tokens", "kv_blocks"} | ({"kv_cache"} if memory else set())
    return {name: value for name, value in printed.items() if name in wanted}


def _is_known(name: str) -> bool:
    try:
        devices.get_device(name)
    except UnknownNameError:
        return False
    return True


def _is_blind(limits: Any) -> bool:
    """Whether no picture and no sound may come in."""
    numbers = re.findall(r"\d+", json.dumps(limits)) if limits else []
    return bool(numbers) and not any(map(int, numbers))


def _extra(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row.get("extra") or {}
    return found


def _method(row: Mapping[str, Any]) -> str | None:
    """How the weights are stored, in the engine's words; the arguments may ask for plain kernels."""
    found = ((row.get("weights") or {}).get("quantization") or {}).get("method")
    if found is None:
        return None
    if found == "awq" and _extra(row).get("quantization_container") == "compressed-tensors":
        found = "int4"
    if "'quantization': 'awq'" in str(_extra(row).get("non_default_args")):
        return "awq"
    if found not in METHODS:
        raise NotModelledError(f"{found} weights in vLLM", where="weights.quantization")
    return METHODS[found]


def _pools(row: Mapping[str, Any], layers: tuple[LayerCache, ...]) -> dict[str, int]:
    """Windows and full attention in pools of their own, each with its own budget."""
    found = {}
    for name, kind in (("swa", SLIDING), ("full", FULL)):
        budget = row["measured"].get(f"kv_cache_{name}")
        if budget is not None:
            per_token = _per_token(tuple(layer for layer in layers if layer.kind == kind), dtypes.BFLOAT16, 1)
            found[f"kv_cache_tokens_{name}"] = budget // per_token - 1
    return found
