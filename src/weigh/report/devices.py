"""The catalogue of devices as tables: all of them in a line each, or a few with the source of every figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import UnknownNameError
from weigh.hardware import Device, all_devices, get_device
from weigh.report.text import Style, table, wrap
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence


def list_devices(names: Sequence[str], search: str, maker: str, style: Style) -> tuple[list[dict[str, Any]], list[str]]:
    """The devices of those names in full, or all that a search finds; as JSON's rows and as lines.

    Raises:
        UnknownNameError: there is no such device, or no such maker.
    """
    if names:
        chosen = [get_device(name) for name in names]
        return [as_dict(d) for d in chosen], [line for d in chosen for line in (*_in_full(d, style), "")][:-1]
    makers = dict.fromkeys(d.maker for d in all_devices())
    if maker and maker.lower() not in map(str.lower, makers):
        raise UnknownNameError("maker", maker, makers, where="--maker")
    chosen = [d for d in all_devices() if maker.lower() in ("", d.maker.lower()) and _has(d, search)]
    if not chosen:
        return [], [f"No device has {search!r} in its names."]
    lines = table([_TITLES, *map(_row, chosen)], "<>>>>>>", indent=0)
    if any(d.memory_is_label for d in chosen):
        lines += ["", *wrap("* as it is sold; no report of a driver was found, which is up to 10 % less", style.width)]
    lines += wrap("FLOP/B: operations at 16 bits for each byte loaded, at which both are busy", style.width)
    return [as_dict(d) for d in chosen], lines


_TITLES = ("name", "memory", "GB/s", "TFLOP/s", "FLOP/B", "GB/s link", "W")


def _has(device: Device, search: str) -> bool:
    names = " ".join((device.name, device.marketing_name, device.generation, *device.aliases)).lower()
    return all(word in names for word in search.lower().split())


def _row(device: Device) -> tuple[str, ...]:
    bandwidth, speed = device.bandwidth_bytes_per_second, device.flops.get("bf16", device.flops.get("fp16"))
    link = max(device.links.values(), default=None)
    return (
        device.name,
        format_bytes(device.memory_bytes) + ("*" if device.memory_is_label else " "),
        "-" if bandwidth is None else f"{bandwidth / 1e9:,.0f}",
        "-" if speed is None else f"{speed / 1e12:,.0f}",
        "-" if speed is None or bandwidth is None else f"{speed / bandwidth:,.0f}",
        "-" if link is None else f"{link / 1e9:,.0f}",
        "-" if device.power_watts is None else f"{device.power_watts}",
    )


def _in_full(device: Device, style: Style) -> list[str]:
    sources = device.sources
    lines = [style.bold(f"{device.name}: {device.marketing_name}"), f"  {device.maker} {device.generation}"]
    if device.aliases:
        lines += wrap(f"also {', '.join(device.aliases)}", style.width, "  ")
    for key, said in _figures(device):
        figure = sources[key]
        lines += ["", f"  {said}"]
        lines += [style.dim(line) for line in wrap(f"“{figure.words}”", style.width, "    ")]
        lines += [style.dim(f"    {figure.url}, {figure.date}")]
    return lines


def _figures(device: Device) -> list[tuple[str, str]]:
    """Every figure: its key, and what it says."""
    told = ", the machine's own" if device.maker == "Apple" else ", as the driver reports it"
    label = ", as it is sold" if device.memory_is_label else told
    found = [("memory_bytes", f"memory {format_bytes(device.memory_bytes)}{label}")]
    if device.reserved_bytes is not None:
        kept = (
            f"{format_bytes(device.reserved_bytes)} of it kept from programs, {format_bytes(device.usable_bytes)} left"
        )
        found.append(("reserved_bytes", kept))
    if device.compute_capability is not None:
        found.append(("compute_capability", "compute capability {}.{}".format(*device.compute_capability)))
    if device.bandwidth_bytes_per_second is not None:
        found.append(("bandwidth_bytes_per_second", f"bandwidth {device.bandwidth_bytes_per_second / 1e9:,.0f} GB/s"))
    if device.power_watts is not None:
        found.append(("power_watts", f"power {device.power_watts} W"))
    for link, speed in device.links.items():
        found.append((f"links.{link}", f"{link} {speed / 1e9:,.1f} GB/s in one direction"))
    for dtype, flops in device.flops.items():
        bandwidth = device.bandwidth_bytes_per_second
        ratio = "" if bandwidth is None else f", {flops / bandwidth:,.0f} for each byte loaded"
        found.append((f"flops.{dtype}", f"{dtype} {flops / 1e12:,.4g} TFLOP/s dense{ratio}"))
    return found


def as_dict(device: Device) -> dict[str, Any]:
    """For JSON."""
    return {
        "name": device.name,
        "marketing_name": device.marketing_name,
        "maker": device.maker,
        "generation": device.generation,
        "aliases": list(device.aliases),
        "memory_bytes": device.memory_bytes,
        "memory_is_label": device.memory_is_label,
        "reserved_bytes": device.reserved_bytes,
        "compute_capability": None if device.compute_capability is None else list(device.compute_capability),
        "bandwidth_bytes_per_second": device.bandwidth_bytes_per_second,
        "power_watts": device.power_watts,
        "links": dict(device.links),
        "flops": dict(device.flops),
        "sources": {k: {"words": f.words, "url": f.url, "date": f.date} for k, f in device.sources.items()},
    }
