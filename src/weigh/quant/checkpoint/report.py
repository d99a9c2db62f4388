"""What a plan says: text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.quant.checkpoint.targets import words
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.quant.checkpoint.plan import Plan


def as_dict(plan: Plan, to: str, seconds: float | None) -> dict[str, Any]:
    """For JSON, by `docs/schema/quantize.json`."""
    return {
        **header("quantize"),
        "source": plan.source,
        "to": to,
        "target": repr(plan.target),
        "source_bytes": plan.source_bytes,
        "bytes": plan.num_bytes,
        "file_bytes": plan.file_bytes,
        "files": {file.name: file.size for file in plan.files},
        "copies": list(plan.copies),
        "memory": {"budget": plan.budget, "peak": plan.peak, "workers": plan.workers},
        "seconds": seconds,
        "quantization_config": (plan.config or {}).get("quantization_config"),
        "tensors": [
            {
                "name": d.tensor.name,
                "shape": list(d.tensor.shape),
                "dtype": d.tensor.dtype,
                "bytes": d.tensor.num_bytes,
                "kept": d.kept,
                "stored": [
                    {"name": o.name, "shape": list(o.shape), "dtype": o.spelled, "bytes": o.num_bytes}
                    for o in d.outputs
                ],
            }
            for d in plan.decisions
        ],
    }


def text(plan: Plan, to: str, seconds: float | None, style: Style = PLAIN, tensors: bool = False) -> str:
    """For people; `tensors` lists every decision."""
    says = words().get(to, "in the numbers of the model")
    if getattr(plan.target, "double_quantization", False):
        says += ", scales quantized too"
    lines = [f"{style.bold(plan.source)} to {to}: {says}", ""]
    rows = [("", "tensors", "before", "after", "bits/weight")]
    for why, (count, before, after) in sorted(plan.bytes_by_reason().items()):
        elements = sum(d.tensor.num_elements for d in plan.decisions if (d.kept or "") == why)
        bits = f"{after * 8 / elements:.4f}" if elements else "-"
        title = f"kept, {why}" if why else "quantized"
        rows.append((title, f"{count:,}", format_bytes(before), format_bytes(after), bits))
    total = sum(d.tensor.num_elements for d in plan.decisions)
    bits = f"{plan.num_bytes * 8 / total:.4f}"
    sizes = format_bytes(plan.source_bytes), format_bytes(plan.num_bytes)
    rows.append(("all", f"{len(plan.decisions):,}", *sizes, bits))
    lines += table(rows, "<>>>>")
    lines.append("")
    if tensors:
        lines += table(
            [
                (
                    d.tensor.name,
                    f"{d.tensor.dtype} {list(d.tensor.shape)}",
                    f"kept, {d.kept}" if d.kept else " + ".join(f"{o.spelled} {list(o.shape)}" for o in d.outputs),
                    f"{d.num_bytes:,}",
                )
                for d in plan.decisions
            ],
            "<<<>",
        )
        lines.append("")
    size = format_bytes(plan.file_bytes)
    files = f"{len(plan.files)} files of weights" if len(plan.files) > 1 else plan.files[0].name
    lines.append(f"  writes   {files}, {size} ({plan.file_bytes:,} bytes with headers)")
    many = f"{plan.workers} processes" if plan.workers > 1 else "one process"
    lines.append(f"  memory   at most {format_bytes(plan.peak)} in {many}, of {format_bytes(plan.budget)}")
    if seconds is not None:
        lines.append(f"  time     about {duration(seconds)} of arithmetic, as a slab took here; the disk may be slower")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(0.2), duration(75), duration(7300)
    ('a second', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1.5:
        return "a second"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
