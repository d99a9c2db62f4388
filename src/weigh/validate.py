"""Predictions beside references: every row of a file of recorded witnesses or measured cases.

A witness row records one real PyTorch step, traced on fake CUDA tensors: its settings, and under `bytes` (and
`bytes_r512`, every storage rounded up to 512 bytes) what was live when. A measured case records what a GPU used,
under `measured`. Each key becomes one line: reference, prediction, relative error, or the reason why there is no
prediction yet. What a row records as an answer is never read as an input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weigh import dtypes, models
from weigh.dims import Size
from weigh.dtypes import DType
from weigh.errors import InputError, WeighError
from weigh.ghost.state import recording
from weigh.recipes import generation, training
from weigh.recipes.generation import Generation
from weigh.recipes.training import Training
from weigh.techniques.fsdp2 import FullyShard
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
    STEP,
    WEIGHT,
    Trace,
)
from weigh.trace.peak import Moment, PhasePeak, live_counts, phase_peaks


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one row."""

    id: str
    metric: str
    reference: int | None
    predicted: int | None
    reason: str | None
    """Why there is no prediction; None where there is one."""
    groups: tuple[str, ...] = ()
    """What the row is summed up under: its family and its settings."""

    @property
    def relative_error(self) -> float | None:
        """(predicted - reference) / reference, against one byte where the reference is none; None without either."""
        if self.predicted is None or self.reference is None:
            return None
        return (self.predicted - self.reference) / max(abs(self.reference), 1)


@dataclass(frozen=True, slots=True)
class Validation:
    """Every line of a file, and what they come to."""

    lines: tuple[Line, ...]

    def summary(self) -> dict[str, Any]:
        """Counts, median, 90th percentile and worst of the absolute relative errors: over all, and by group."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            for group in line.groups:
                groups.setdefault(group, []).append(line)
        return {"all": _figures(list(self.lines)), "groups": {g: _figures(groups[g]) for g in sorted(groups)}}

    def as_dict(self) -> dict[str, Any]:
        """The published JSON: `rows` and `summary`."""
        rows = [
            {
                "id": line.id,
                "metric": line.metric,
                "reference": line.reference,
                "predicted": line.predicted,
                "relative_error": line.relative_error,
                "reason": line.reason,
            }
            for line in self.lines
        ]
        return {"rows": rows, "summary": self.summary()}

    def text(self) -> str:
        """A table of the lines, then the summary."""
        out = [f"{'row':44} {'metric':22} {'reference':>18} {'predicted':>18} {'error':>10}"]
        out += [_text_of(line) for line in self.lines]
        summary = self.summary()
        out += ["", f"{'':30} {'values':>8} {'exact':>8} {'none':>6} {'median':>10} {'90 %':>10} {'worst':>10}"]
        for name, figures in [("all", summary["all"]), *summary["groups"].items()]:
            cells = [_percent(figures[k]) for k in ("median", "percentile_90", "worst")]
            counts = f"{figures['values']:>8} {figures['exact']:>8} {figures['not_predicted']:>6}"
            out.append(f"{name:30} {counts} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10}")
        return "\n".join(out)


def _text_of(line: Line) -> str:
    reference = "-" if line.reference is None else f"{line.reference:,}"
    start = f"{line.id:44} {line.metric:22} {reference:>18}"
    if line.predicted is None:
        return f"{start} {'-':>18}   {line.reason}"
    return f"{start} {line.predicted:>18,} {_percent(line.relative_error):>10}"


def _percent(error: float | None) -> str:
    if error is None:
        return "-"
    return "0" if not error else f"{error * 100:+.4f} %"


def _figures(lines: list[Line]) -> dict[str, Any]:
    errors = sorted(abs(e) for e in (line.relative_error for line in lines) if e is not None)
    count = len(errors)
    return {
        "values": len(lines),
        "predicted": count,
        "not_predicted": len(lines) - count,
        "exact": sum(1 for e in errors if not e),
        "median": errors[(count - 1) // 2] if errors else None,
        "percentile_90": errors[max(0, -(-9 * count // 10) - 1)] if errors else None,
        "worst": errors[-1] if errors else None,
    }


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
        raise InputError(f"cannot be read ({error})", where=path, hint="Give a file of JSON lines.") from None


def _validate_row(row: Mapping[str, Any], where: str) -> list[Line]:
    groups = tuple(_groups(row))
    measured = "measured" in row
    wanted = _numbers(row.get("measured")) if measured else _numbers(row.get("bytes"))
    if not measured:
        wanted |= {f"{k}_r512": v for k, v in _numbers(row.get("bytes_r512")).items()}
    predict = _predict_case if measured else _predict_witness
    if not wanted:
        reason = f"the row records no bytes ({row['error']})" if "error" in row else "the row records no bytes"
        return [Line(row["id"], "bytes", None, None, reason, groups)]
    try:
        predicted, reason = predict(row, where), "weigh does not know this metric"
    except WeighError as error:
        predicted, reason = {}, str(error)
    return [
        Line(row["id"], key, value, predicted.get(key), None if key in predicted else reason, groups)
        for key, value in wanted.items()
    ]


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


def _predict_case(row: Mapping[str, Any], where: str) -> dict[str, int]:
    """Of measured cases only parameter counts can be predicted yet."""
    config = (row.get("model") or {}).get("config")
    if "parameters" not in row["measured"]:
        raise WeighError(
            f"measured runs of {row.get('runtime') or row.get('task') or 'this kind'} are not predicted yet"
        )
    if not isinstance(config, dict):
        raise WeighError("the case has no config")
    with recording():
        model = models.build(config, dtypes.BFLOAT16, where)
        return {"parameters": _plain(sum(p.numel * p.count for p in model.parameters()))}


_TRAIN_SETTINGS = {
    "accum", "attn", "autocast", "backend", "ckpt", "clip", "dec_len", "dtype", "foreach", "freeze", "fused", "lora",
    "momentum", "opt", "parallel", "set_to_none", "steps",
}  # fmt: skip
_INFER_SETTINGS = {"attn", "backend", "cache", "dtype", "logits_to_keep", "new"}


def _predict_witness(row: Mapping[str, Any], where: str) -> dict[str, int]:
    kind, config = row.get("kind"), row.get("config")
    if not isinstance(config, dict):
        raise WeighError("the row has no config")
    if kind in ("train", "fsdp2"):
        _check_settings(row, _TRAIN_SETTINGS)
        run = training.run(config, training_recipe(row), where)
        return _both(run.trace, _training_metrics)
    if kind == "infer":
        _check_settings(row, _INFER_SETTINGS)
        made = generation.run(config, generation_recipe(row), where)
        return _both(made.trace, _generation_metrics)
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
        shard=_fully_shard(settings["parallel"]) if "parallel" in settings else None,
        steps=settings.get("steps") or 2,
        labels_are_inputs=True,
        traced=True,
    )


def _fully_shard(settings: Mapping[str, Any]) -> FullyShard:
    def dtype(name: str) -> DType | None:
        return dtypes.get(settings[name]) if settings.get(name) else None

    return FullyShard(
        settings["world"],
        reshard_after_forward=settings.get("reshard_after_forward"),
        param_dtype=dtype("param_dtype"),
        reduce_dtype=dtype("reduce_dtype"),
    )


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
    )


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
        "kv_cache_end": held.get(KV_CACHE, 0),
        "before_prefill": _plain(prefill[0].before),
        "after_prefill": _plain(prefill[-1].after),
        "after_decode": _plain(peaks[-1].after),
        "peak_prefill": peak_prefill,
        "peak_decode": peak_decode,
        "peak": max(peak_prefill, peak_decode),
    }
