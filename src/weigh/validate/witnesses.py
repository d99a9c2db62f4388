"""Recorded runs of real PyTorch: the recipe of a row, and the figures that it records, out of a ghost run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weigh import dtypes
from weigh.dims import Size
from weigh.errors import WeighError
from weigh.recipes import generation, trained
from weigh.recipes.generation import Generation
from weigh.recipes.training import Training
from weigh.techniques.lora import Lora
from weigh.trace.events import (
    BACKWARD,
    BUFFER,
    CLIP,
    DECODE,
    FORWARD,
    INPUT,
    KV_CACHE,
    LOAD,
    OPTIMIZER_STATE,
    PREFILL,
    RECURRENT_STATE,
    STEP,
    WEIGHT,
    Trace,
)
from weigh.trace.peak import Moment, PhasePeak, live_counts, phase_peaks

_TRAIN_SETTINGS = {
    "accum", "attn", "autocast", "backend", "ckpt", "clip", "dec_len", "dtype", "foreach", "freeze", "fused", "lora",
    "momentum", "opt", "parallel", "set_to_none", "steps",
}  # fmt: skip
_INFER_SETTINGS = {"attn", "backend", "cache", "dtype", "logits_to_keep", "new"}


def predict_witness(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """What a ghost run says to every figure of a row, by name.

    Raises:
        WeighError: the row cannot be predicted; it says why.
    """
    kind, config = row.get("kind"), row.get("config")
    if not isinstance(config, dict):
        raise WeighError("the row has no config")
    if kind in ("train", "fsdp1", "fsdp2", "tp"):
        _check_settings(row, _TRAIN_SETTINGS)
        run = trained.run(config, training_recipe(row), where)
        return recorded_figures(run.trace, "train")
    if kind == "infer":
        _check_settings(row, _INFER_SETTINGS)
        made = generation.run(config, generation_recipe(row), where)
        return recorded_figures(made.trace, kind)
    raise WeighError(f"rows of kind {kind!r} are not predicted yet")


def _check_settings(row: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(k for k, v in (row.get("settings") or {}).items() if k not in known and v not in (None, False))
    if unknown:
        raise WeighError(f"the setting {unknown[0]!r} is not modelled yet")


def training_recipe(row: Mapping[str, Any]) -> Training:
    """The recipe of a witness row of kind "train"."""
    settings = row["settings"]
    lora, ckpt, autocast = settings.get("lora"), settings.get("ckpt", False), settings.get("autocast")
    return Training(
        batch=row["batch"],
        sequence=row["seq"],
        target=settings.get("dec_len"),
        dtype=dtypes.get(settings["dtype"]),
        autocast=dtypes.get(autocast) if autocast else None,
        attention=settings["attn"],
        attention_kernel=None if settings.get("backend") == "auto" else settings.get("backend"),
        checkpointing={False: None, None: None, True: "full"}.get(ckpt, ckpt),
        optimizer=None if settings["opt"] == "none" else settings["opt"],
        implementation="fused" if settings.get("fused") else "foreach" if settings.get("foreach") else "forloop",
        momentum=settings.get("momentum") or 0.0,
        clip=bool(settings.get("clip")),
        accumulation=settings.get("accum", 1),
        set_to_none=settings.get("set_to_none", True),
        freeze=settings.get("freeze"),
        lora=_lora(lora, bool(ckpt)) if lora else None,
        **_parallel(settings.get("parallel")),
        steps=settings.get("steps") or 2,
        labels_are_inputs=True,
        traced=True,
        unchecked_attention=True,
    )


def _parallel(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe's fields for a row of several ranks."""
    if settings is None:
        return {}
    found: dict[str, Any] = {"gpus_per_node": settings["world"], "meta_init": False}
    if settings["kind"] in ("fsdp1", "fsdp2"):
        found |= {"shard": settings["kind"], "reshard_after_forward": settings.get("reshard_after_forward")}
        found |= {"use_orig_params": settings.get("use_orig_params", True)}
        for name in ("param_dtype", "reduce_dtype"):
            found[name] = dtypes.get(settings[name]) if settings.get(name) else None
    else:
        found["tensor"] = settings["world"]
    return found


def _lora(settings: Mapping[str, Any], checkpointed: bool) -> Lora:
    return Lora(
        rank=settings["r"],
        targets=tuple(settings["targets"]),
        dropout=settings.get("dropout", 0.0),
        autocast_adapter=settings.get("autocast_adapter", True),
        input_gradients=checkpointed,
    )


def generation_recipe(row: Mapping[str, Any]) -> Generation:
    """The recipe of a witness row of kind "infer"."""
    settings = row["settings"]
    return Generation(
        batch=row["batch"],
        prompt=row["seq"],
        new_tokens=settings.get("new", 4),
        dtype=dtypes.get(settings["dtype"]),
        attention=settings["attn"],
        attention_kernel=None if settings.get("backend") == "auto" else settings.get("backend"),
        cache=settings.get("cache", "dynamic"),
        logits_to_keep=settings.get("logits_to_keep") or 0,
        bare=True,
        traced=True,
        unchecked_attention=True,
    )


def recorded_figures(trace: Trace, kind: str) -> dict[str, int]:
    """The figures of a row of a kind, by name, out of any trace: a ghost's or a recorded one."""
    return _both(trace, _generation_metrics if kind == "infer" else _training_metrics)


def _both(trace: Trace, metrics: Callable[[Trace, bool], dict[str, int]]) -> dict[str, int]:
    return metrics(trace, False) | {f"{k}_r512": v for k, v in metrics(trace, True).items()}


def _plain(size: Size) -> int:
    assert isinstance(size, int)
    return size


def _held(trace: Trace, rounded: bool) -> dict[str, int]:
    """The bytes live at the end, by purpose."""
    last = len(trace.spans) - 1
    held: dict[str, int] = {}
    for index, count in live_counts(trace, Moment(last, trace.spans[last].count - 1, len(trace.events) - 1)).items():
        allocation = trace.allocations[index]
        size = _plain(allocation.num_bytes)
        held[allocation.purpose] = held.get(allocation.purpose, 0) + count * (
            (size + 511) // 512 * 512 if rounded else size
        )
    return held


def _training_metrics(trace: Trace, rounded: bool) -> dict[str, int]:
    peaks = phase_peaks(trace, rounded)
    held = _held(trace, rounded)
    last = peaks[-1].mark.round
    mine = [p for p in peaks if p.mark.round == last and p.mark.phase != LOAD]

    def highest(chosen: list[PhasePeak]) -> int:
        return max(_plain(p.peak) for p in chosen)

    metrics = {
        "params": held.get(WEIGHT, 0),
        "buffers": held.get(BUFFER, 0),
        "optimizer_state": held.get(OPTIMIZER_STATE, 0),
        "inputs": held.get(INPUT, 0),
        "after_fwd": _plain([p for p in mine if p.mark.phase == FORWARD][-1].after),
        "after_bwd": _plain([p for p in mine if p.mark.phase == BACKWARD][-1].after),
        "after_step": _plain(mine[-1].after),
        "peak": highest(mine),
        "peak_first_step": highest([p for p in peaks if p.mark.round == 0 and p.mark.phase != LOAD]),
        "peak_any_time": highest(peaks),
    }
    for name, phase in (("peak_fwd", FORWARD), ("peak_bwd", BACKWARD), ("peak_clip", CLIP), ("peak_opt", STEP)):
        chosen = [p for p in mine if p.mark.phase == phase]
        if chosen:
            metrics[name] = highest(chosen)
    return metrics


def _generation_metrics(trace: Trace, rounded: bool) -> dict[str, int]:
    peaks = phase_peaks(trace, rounded)
    held = _held(trace, rounded)
    prefill = [p for p in peaks if p.mark.phase == PREFILL]
    decode = [p for p in peaks if p.mark.phase == DECODE]
    peak_prefill = max(_plain(p.peak) for p in prefill)
    peak_decode = max((_plain(p.peak) for p in decode), default=0)
    return {
        "params": held.get(WEIGHT, 0),
        "buffers": held.get(BUFFER, 0),
        "inputs": held.get(INPUT, 0),
        "kv_cache_end": held.get(KV_CACHE, 0) + held.get(RECURRENT_STATE, 0),
        "before_prefill": _plain(prefill[0].before),
        "after_prefill": _plain(prefill[-1].after),
        "after_decode": _plain(peaks[-1].after),
        "peak_prefill": peak_prefill,
        "peak_decode": peak_decode,
        "peak": max(peak_prefill, peak_decode),
    }
