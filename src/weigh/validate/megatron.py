"""The words of measured cases of Megatron-LM: what its arguments and notes say beyond the keys that all cases have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from weigh.errors import NotModelledError, WeighError
from weigh.jobs.megatron import FSDP_DTYPES, REFUSED, UNEVEN, uneven
from weigh.recipes.training import DISPATCHERS, VOCAB_PARALLEL_LOSSES

LOCAL = "local"
"""`--transformer-impl`: Megatron's own layers."""

HANDLED = ("attention_backend",)
"""Arguments that the reader of scripts refuses, and cases say in words of their own."""
SIMUMAX = "simumax"
"""A publisher whose scripts (`simu_tools/megatron_scripts`) run without dropout and without masks in batches."""


MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
SEASONS = {"early": 2, "mid": 6, "late": 11}
RELEASES = {
    (2024, 1): (0, 4), (2024, 2): (0, 5), (2024, 4): (0, 6), (2024, 6): (0, 7), (2024, 8): (0, 8), (2024, 10): (0, 9),
    (2025, 2): (0, 10), (2025, 3): (0, 11), (2025, 5): (0, 12), (2025, 7): (0, 13), (2025, 10): (0, 14),
}  # fmt: skip
"""Year and month of Megatron Core's releases, by the tags of its repository; later ones are what is described."""


def megatron_version(printed: str) -> tuple[int, ...] | None:
    """The release of Megatron Core: printed, or the last one before the program is said to be from.

    >>> megatron_version("Megatron-LM mid-2023 (transformer_impl local)"), megatron_version("Megatron Core 0.14.1")
    ((0, 3), (0, 14, 1))
    >>> megatron_version("Megatron-LM April 2025, torch 2.5.1"), megatron_version("Megatron-LM early 2026")
    ((0, 11), None)
    """
    found = re.search(r"(?:Core|mcore) v?(\d+(?:\.\d+)+)", printed)
    if found:
        return tuple(map(int, found[1].split(".")))
    said = re.search(r"Megatron-LM (?:([a-z]+)[ -])?(20\d\d)\b", printed, re.IGNORECASE)
    if said is None:
        return None
    word, year = str(said[1]).lower(), int(said[2])
    month = MONTHS.index(word[:3]) + 1 if word[:3] in MONTHS else SEASONS.get(word, 6)
    if (year, month) > (2025, 12):
        return None
    return max((version for when, version in RELEASES.items() if when <= (year, month)), default=(0, 3))


def megatron_words(case: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `Training` that a case states.

    Raises:
        NotModelledError: it states something that no setting can say.
    """
    for key in ("adapter", "offload", "compile"):
        if case.get(key):
            raise NotModelledError(f"{key} in Megatron-LM", where=key)
    extra = case.get("extra") or {}
    for key in ("batch", "sequence"):
        if case.get(key) is None:
            raise WeighError(f"the case does not say its {key}", where=key)
    words: dict[str, Any] = {"batch": case["batch"], "sequence": case["sequence"]}
    words["accumulation"] = case.get("gradient_accumulation") or 1
    words |= dict(_precision(case))
    if extra.get("optimizer_states_allocated") is False:
        if words.get("dtype") != "fp16":
            raise NotModelledError("a run that makes no optimizer states", where="extra.optimizer_states_allocated")
        words["steps"] = 1  # the first is skipped, for its loss is scaled too far; so was every other of the run
    words |= dict(_parallel(case.get("parallel") or {}, extra.get("megatron_fsdp")))
    words |= _recomputed(case.get("checkpointing") or {}, extra.get("megatron_args") or {})
    words |= dict(_kernels(case, extra, extra.get("megatron_args") or {}))
    _refuse(extra.get("megatron_args") or {})
    words |= dict(_stages(case, extra, extra.get("megatron_args") or {}))
    name = (case.get("optimizer") or {}).get("name")
    if name is not None:
        words["optimizer"] = name
    return words


def _recomputed(found: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    mode = None if found.get("mode") == "none" else found.get("mode")
    listed = re.search(r"modules: (.*)", str(found.get("detail")))
    said = args.get("recompute-modules", listed[1] if listed else None)
    if mode != "selective" or said is None:
        return {"checkpointing": mode}
    return {"checkpointing": mode, "recompute_modules": tuple(re.findall(r"\w+", str(said)))}


def _precision(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    dtype = (case.get("weights") or {}).get("dtype")
    if (case.get("weights") or {}).get("quantization"):
        raise NotModelledError("quantized weights in Megatron-LM", where="weights")
    precision = case.get("precision") or {}
    if precision.get("compute") == "fp8":
        yield from _fp8(case)
        dtype = "bf16"
    elif precision.get("compute") not in (None, dtype):
        raise NotModelledError("computing in another precision in Megatron-LM", where="precision")
    program = f"{case.get('runtime_version')} {(case.get('extra') or {}).get('framework')}"
    if precision.get("gradients") is None and "Bridge" in program:
        raise WeighError("the case does not say in what its gradients are, which recipes choose", where="precision")
    if precision.get("gradients") not in (None, "fp32", dtype):
        raise NotModelledError(f"gradients in {precision['gradients']} in Megatron-LM", where="precision.gradients")
    yield "grad_reduce_in_bf16", dtype == "bf16" and precision.get("gradients") == "bf16"
    if dtype is not None:
        yield "dtype", dtype


def _fp8(case: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The recipe of Transformer Engine, Megatron's default where none is said, and whether weights are FP8."""
    said = {key.replace("_", "-"): value for key, value in ((case.get("extra") or {}).get("fp8") or {}).items()}
    if not said:
        raise WeighError("the case does not say how FP8 is scaled", where="extra.fp8")
    yield "fp8", said.get("fp8-recipe", "delayed")
    yield "fp8_params", bool(said.get("fp8-param-gather"))
    if said.get("fp8-amax-history-len"):
        yield "fp8_amax_history", said["fp8-amax-history-len"]


def _parallel(found: Mapping[str, Any], fsdp: str | None) -> Iterator[tuple[str, Any]]:
    yield "gpus_per_node", found.get("world") or 1
    for name in ("tensor", "pipeline", "context", "expert", "virtual_pipeline", "expert_tensor"):
        if found.get(name):
            yield name, found[name]
    stage, tensor, expert = ((found.get(name) or 1) for name in ("world", "tensor", "expert"))
    stage //= found.get("pipeline") or 1
    if not found.get("expert_tensor") and expert > 1 and stage % (tensor * expert) and stage % expert == 0:
        yield "expert_tensor", 1  # as many as share other layers is impossible here
    yield "sequence_parallel", bool(found.get("sequence_parallel"))
    if found.get("shard") not in (None, "none") and not fsdp:
        yield "shard", found["shard"]
    if fsdp and fsdp != "no_shard":
        yield "shard", "megatron_fsdp"
        yield "sharding_strategy", fsdp


def _kernels(case: Mapping[str, Any], extra: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    local = extra.get("transformer_impl", args.get("transformer-impl")) == LOCAL or "local" in str(
        extra.get("attention_detail")
    )
    yield "local_layers", local
    if not local and (args.get("attention-backend") == "unfused" or case.get("attention") == "eager"):
        yield "attention_kernel", "math"
    loss = case.get("loss") or "vocab_parallel"
    if loss not in VOCAB_PARALLEL_LOSSES:
        raise NotModelledError(f"the loss {loss!r} in Megatron-LM", where="loss")
    if loss != "vocab_parallel":
        yield "loss", loss
    simumax = extra.get("family") == SIMUMAX
    scripted = 0.0 if simumax else None
    yield "mask_in_batch", not (simumax or args.get("no-create-attention-mask-in-dataloader"))
    for name in ("hidden_dropout", "attention_dropout"):
        given = extra.get(name, scripted)
        if given is not None:
            yield name, given
    gated = args.get("swiglu") or case["model"]["config"].get("gated_mlp")
    yield "activation_fusion", not args.get(f"no-bias-{'swiglu' if gated else 'gelu'}-fusion")
    yield "deterministic", bool(args.get("deterministic-mode"))
    if not extra.get("megatron_fsdp"):
        yield "gradient_accumulation_fusion", not args.get("no-gradient-accumulation-fusion")
    yield "masked_softmax_fusion", not args.get("no-masked-softmax-fusion")
    wide = "attention-softmax-in-fp32", "apply-query-key-layer-scaling"
    yield "softmax_in_fp32", any(args.get(name) for name in wide)
    yield "precision_aware_optimizer", bool(args.get("use-precision-aware-optimizer"))
    for name in ("exp-avg-dtype", "exp-avg-sq-dtype"):
        if args.get(name):
            yield name.replace("-", "_"), args[name]
    yield "overlap_tensor_communication", bool(args.get("tp-comm-overlap"))
    yield "overlap_grad_reduce", bool(args.get("overlap-grad-reduce"))
    exchange = extra.get("cp_comm_type", args.get("cp-comm-type"))
    if exchange:
        yield "context_exchange", exchange
        groups = re.findall(r"\d+", str(args.get("hierarchical-context-parallel-sizes", "")))
        if groups:
            yield "context_heads", int(groups[0])
    yield from _experts(extra.get("moe") or {}, args)


def _refuse(args: Mapping[str, Any]) -> None:
    """Arguments that change memory, and are not described."""
    for name in FSDP_DTYPES:
        if args.get(name.replace("_", "-")) not in (None, "fp32"):
            raise NotModelledError(f"--{name.replace('_', '-')}", where="extra.megatron_args")
    for name in REFUSED:
        if args.get(name.replace("_", "-")) and name not in HANDLED:
            raise NotModelledError(f"--{name.replace('_', '-')} of Megatron-LM", where="extra.megatron_args")


def _stages(case: Mapping[str, Any], extra: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Which stage has which layers, and in what order micro-batches go through them."""
    layout = extra.get("pipeline_layout") or args.get("pipeline-model-parallel-layout")
    dealt = layout if isinstance(layout, Mapping) else {key: args.get(key.replace("_", "-")) for key in UNEVEN.values()}
    found = {name: int(value) for name, key in UNEVEN.items() if (value := dealt.get(key))}
    if isinstance(layout, str):
        yield "pipeline_layout", layout
    elif found:
        parallel = case["parallel"]
        stages = parallel.get("pipeline") or 1, parallel.get("virtual_pipeline") or 1
        text = uneven(case["model"]["config"]["num_hidden_layers"], *stages, **found)
        if text is None:
            raise WeighError(f"layers do not divide over stages as {found} says", where="extra")
        yield "pipeline_layout", text
    instances = extra.get("num_distributed_optimizer_instances", args.get("num-distributed-optimizer-instances"))
    if instances:
        yield "replicas", instances
    group = args.get("microbatch-group-size-per-virtual-pipeline-stage")
    if group:
        yield "virtual_pipeline_group", group
    if args.get("defer-embedding-wgrad-compute"):
        yield "defer_embedding_wgrad", args.get("wgrad-deferral-limit", 0)


def _experts(experts: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if experts.get("capacity_factor") and experts.get("pad_to_capacity"):
        yield "capacity_factor", experts["capacity_factor"]
    if "num-experts" in args or experts:
        dispatcher = args.get("moe-token-dispatcher-type", experts.get("dispatcher", "allgather"))
        if dispatcher not in DISPATCHERS:
            raise NotModelledError(f"the token dispatcher {dispatcher!r} in Megatron-LM", where="extra.moe")
        yield "token_dispatcher", dispatcher
        yield "overlap_expert_communication", bool(args.get("overlap-moe-expert-parallel-comm"))
        yield "grouped_experts", bool(args.get("moe-grouped-gemm", experts.get("grouped_gemm", not args)))
        yield "permute_fusion", bool(args.get("moe-permute-fusion", experts.get("permute_fusion")))
        router_dtype = args.get("moe-router-dtype", experts.get("router_dtype"))
        if router_dtype is not None:
            yield "router_dtype", router_dtype
