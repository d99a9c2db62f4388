"""The catalogue of devices: what each holds and how fast it is, with a source for every single figure.

A figure that no readable source states is absent (None, or missing from `flops`), never remembered or guessed. The
data is `devices.json` beside this file, read at the first question. Prices, networks and detection of the hardware at
hand are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a number was read."""

    words: str
    """What the source says, quoted or nearly so."""
    url: str
    """Its address."""
    date: str
    """When it was written, or read if it bears no date: YYYY-MM-DD."""


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """One accelerator, alone; one object per device, so devices are compared with `is`."""

    name: str
    """The catalogue's key: "h100-80gb"."""
    marketing_name: str
    """As the driver prints it: "NVIDIA H100 80GB HBM3"."""
    aliases: tuple[str, ...]
    """Other names that mean this device and no other."""
    memory_bytes: int
    """Total memory as the driver reports it (nvidia-smi memory.total); not the label, which may be up to 10 % more."""
    reserved_bytes: int | None
    """What the driver keeps of that for itself, so that programs see the rest; differs between driver versions."""
    compute_capability: tuple[int, int] | None
    """CUDA's, as (major, minor)."""
    bandwidth_bytes_per_second: int | None
    """Peak bandwidth of the device's own memory."""
    flops: Mapping[str, int]
    """Peak dense (not sparse) operations per second by canonical dtype; on matrix units where the dtype has them."""
    sources: Mapping[str, Figure]
    """The source of each of these figures: "memory_bytes", "flops.bf16", ..."""

    def peak_flops(self, dtype: str | dtypes.DType) -> int:
        """Peak dense operations per second of matrix products of that dtype.

        >>> get_device("h100").peak_flops("bfloat16")
        989000000000000

        Raises:
            UnknownNameError: no such dtype.
            NotModelledError: the device lacks the dtype, or no source was found.
        """
        name = (dtypes.get(dtype) if isinstance(dtype, str) else dtype).name
        if name not in self.flops:
            known = ", ".join(self.flops) or "none"
            raise NotModelledError(f"the {name} speed of {self.marketing_name}", hint=f"Speeds with a source: {known}.")
        return self.flops[name]


def get_device(name: str) -> Device:
    """The device of that name: a key, an alias, or what nvidia-smi prints; case, spaces and makers do not matter.

    "h100" is the SXM module; "a100" and "v100" name two sizes each and are refused.

    >>> get_device("NVIDIA GeForce RTX 4090").memory_bytes
    25757220864

    Raises:
        UnknownNameError: no device, or more than one, has that name; near misses are suggested.
    """
    found = _index().get(_key(name))
    if found is None:
        raise UnknownNameError("device", name, (device.name for device in all_devices()))
    return found


@cache
def all_devices() -> tuple[Device, ...]:
    """Every device of the catalogue, in its order: data-centre cards, newest first, then cards for desktops.

    >>> len(all_devices()) > 15
    True
    """
    raw = get_data("weigh.hardware", "devices.json")
    assert raw is not None, "the loader of this package cannot read data"
    catalogue = json.loads(raw)
    return tuple(_device(row, catalogue["sources"]) for row in catalogue["devices"])


def _device(row: dict[str, Any], sources: Mapping[str, Mapping[str, str]]) -> Device:
    def value(key: str) -> Any:
        return row[key]["value"] if key in row else None

    capability = value("compute_capability")
    return Device(
        name=row["name"],
        marketing_name=row["marketing_name"],
        aliases=tuple(row["aliases"]),
        memory_bytes=row["memory_bytes"]["value"],
        reserved_bytes=value("reserved_bytes"),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        bandwidth_bytes_per_second=value("bandwidth_bytes_per_second"),
        flops={dtype: figure["value"] for dtype, figure in row["flops"].items()},
        sources={key: Figure(figure["words"], **sources[figure["source"]]) for key, figure in _figures(row)},
    )


def _figures(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, figure in row.items():
        if key == "flops":
            yield from ((f"flops.{dtype}", speed) for dtype, speed in figure.items())
        elif isinstance(figure, dict):
            yield key, figure


@cache
def _index() -> dict[str, Device]:
    names = ((d, name) for d in all_devices() for name in (d.name, d.marketing_name, *d.aliases))
    return {_key(name): device for device, name in names}


def _key(name: str) -> str:
    """A name without case, spaces, and makers and brands that add nothing."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    return "-".join(word for word in words if word not in ("nvidia", "amd", "geforce", "tesla", "instinct"))
