"""`weigh dtypes`, `weigh models` and `weigh devices`: what is known by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh.cli import COMMANDS
from weigh.cli.options import Parser
from weigh.report.header import header
from weigh.report.text import table
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer of one command, and its exit code."""
    parser = Parser(command, f"Lists {COMMANDS[command][1]}.")
    if command == "models":
        parser.add_argument("--search", default="", metavar="TEXT", help="those with all these words in their names")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    rows, lines = _models(found.search) if command == "models" else {"dtypes": _dtypes, "devices": _devices}[command]()
    if found.json:
        return json.dumps({**header(command), command: rows}, indent=2, ensure_ascii=False), 0
    return "\n".join(lines), 0


def _dtypes() -> tuple[list[dict[str, Any]], list[str]]:
    from weigh.dtypes import TABLE

    rows = [
        {
            "name": d.name,
            "kind": d.kind,
            "bits_per_element": d.bits_per_element,
            "elements_per_block": d.elements_per_block,
            "bytes_per_block": d.bytes_per_block,
            "exponent_bits": d.exponent_bits,
            "mantissa_bits": d.mantissa_bits,
            "max": d.max,
            "min_normal": d.min_normal,
            "min_subnormal": d.min_subnormal,
            "epsilon": d.epsilon,
            "source": d.source,
            "notes": d.notes,
        }
        for d in TABLE.values()
    ]
    shown: list[tuple[str, ...]] = [("name", "kind", "bits", "block", "layout", "largest", "epsilon")]
    for d in TABLE.values():
        block = "" if d.elements_per_block == 1 else f"{d.elements_per_block} in {d.bytes_per_block} B"
        layout = "" if d.exponent_bits is None else f"1+{d.exponent_bits}+{d.mantissa_bits}"
        limits = ("" if x is None else f"{x:.6g}" for x in (d.max, d.epsilon))
        shown.append((d.name, d.kind, f"{d.bits_per_element:.6g}", block, layout, *limits))
    return rows, table(shown, "<<>><>>", indent=0)


def _models(search: str) -> tuple[list[dict[str, Any]], list[str]]:
    from weigh import dtypes
    from weigh.sources.catalogue import entries
    from weigh.units import format_count

    rows: list[dict[str, Any]] = []
    shown = [("name", "parameters", "", "weights", "other names")]
    for entry in entries(search):
        dtype = dtypes.get(entry.config["dtype"])
        num_bytes = dtype.num_bytes(entry.parameters)
        rows.append(
            {
                "name": entry.name,
                "title": entry.title,
                "model_type": entry.config["model_type"],
                "parameters": entry.parameters,
                "dtype": dtype.name,
                "bytes": num_bytes,
                "aliases": list(entry.aliases),
                "source": entry.source,
                "revision": entry.revision,
            }
        )
        weight = f"{format_bytes(num_bytes)} {dtype.name}"
        others = ", ".join(entry.aliases[:2])
        shown.append((entry.name, f"{entry.parameters:,}", format_count(entry.parameters), weight, others))
    if not rows:
        return rows, [f"No bundled model has {search!r} in its names; ORG/NAME of the Hub and files can be asked for."]
    return rows, table(shown, "<>>><", indent=0)


def _devices() -> tuple[list[dict[str, Any]], list[str]]:
    from weigh.hardware import all_devices

    rows = [
        {
            "name": d.name,
            "marketing_name": d.marketing_name,
            "aliases": list(d.aliases),
            "memory_bytes": d.memory_bytes,
            "reserved_bytes": d.reserved_bytes,
            "compute_capability": None if d.compute_capability is None else list(d.compute_capability),
            "bandwidth_bytes_per_second": d.bandwidth_bytes_per_second,
            "flops": dict(d.flops),
            "sources": {k: {"words": f.words, "url": f.url, "date": f.date} for k, f in d.sources.items()},
        }
        for d in all_devices()
    ]
    shown = [("name", "memory", "bandwidth", "bf16", "as the driver prints it")]
    for d in all_devices():
        speed = d.bandwidth_bytes_per_second
        bandwidth = "-" if speed is None else f"{speed / 1e9:,.0f} GB/s"
        bf16 = f"{d.flops['bf16'] / 1e12:,.0f} TFLOP/s" if "bf16" in d.flops else "-"
        shown.append((d.name, format_bytes(d.memory_bytes), bandwidth, bf16, d.marketing_name))
    return rows, table(shown, "<>>><", indent=0)
