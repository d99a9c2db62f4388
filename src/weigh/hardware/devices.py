"""The catalogue of devices: what each holds and how fast it is, with a source for every single figure.

A figure that no readable source states is absent (None, or missing from `flops`), never remembered or guessed. The
data is `devices.json` beside this file, read at the first question. The machine at hand is looked at in `here.py`.
Prices and networks between machines are left out.
"""

from __future__ import annotations

import json
from functools import cache
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

from weigh import dtypes
from weigh.errors import NotModelledError, UnknownNameError
from weigh.records import dataclass, field

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
    """As the driver prints it: "NVIDIA H100 80GB HBM3"; two sizes of a card may share it."""
    maker: str
    """NVIDIA, AMD, Intel, Apple, Google, ..."""
    generation: str
    """The architecture, as its maker calls it: "Hopper", "RDNA3", "M2"; measured efficiencies are told apart by it."""
    aliases: tuple[str, ...]
    """Other names that mean this device and no other."""
    memory_bytes: int
    """Total memory as the driver reports it (nvidia-smi memory.total), unless `memory_is_label`."""
    memory_is_label: bool
    """No driver's report of this device was found: `memory_bytes` is what is printed on the box, up to 10 % more."""
    reserved_bytes: int | None
    """What programs do not get of that: the driver's own share, which differs between versions; on Apple silicon,
    whose memory is the machine's, what is above Metal's recommended working set."""
    compute_capability: tuple[int, int] | None
    """CUDA's, as (major, minor)."""
    bandwidth_bytes_per_second: int | None
    """Peak bandwidth of the device's own memory."""
    power_watts: int | None
    """The board's power limit as it is sold."""
    links: Mapping[str, int]
    """Bytes per second in one direction: "pcie" to the host, "nvlink", "xgmi", "ici" and others to its neighbours."""
    flops: Mapping[str, int]
    """Peak dense (not sparse) operations per second by canonical dtype; on matrix units where the dtype has them."""
    _row: Mapping[str, Any] = field(repr=False)
    _addresses: Mapping[str, Mapping[str, str]] = field(repr=False)

    @property
    def sources(self) -> dict[str, Figure]:
        """The source of each of these figures: "memory_bytes", "flops.bf16", "links.pcie", ..."""
        return {key: Figure(f["words"], **self._addresses[f["source"]]) for key, f in _figures(self._row)}

    @property
    def usable_bytes(self) -> int:
        """What one program can have of the memory."""
        return self.memory_bytes - (self.reserved_bytes or 0)

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

    "h100" is the SXM module; "a100" and "v100" name two sizes each and are refused. "here" is this machine's own.

    >>> get_device("NVIDIA GeForce RTX 4090").memory_bytes
    25757220864

    Raises:
        UnknownNameError: no device, or more than one, has that name; near misses are suggested.
        InputError: "here", and this machine has no device of the catalogue.
    """
    if name == "here":
        from weigh.hardware.here import device_here

        return device_here()
    found = named(name)
    if len(found) != 1:
        raise UnknownNameError("device", name, (device.name for device in found or all_devices()))
    return found[0]


def named(name: str) -> tuple[Device, ...]:
    """Every device that a name may mean: sizes of a card that drivers call alike, or none."""
    return _index().get(_key(name), ())


@cache
def all_devices() -> tuple[Device, ...]:
    """Every device of the catalogue, by maker: for data centres first, newest first, then for desks.

    >>> len(all_devices()) > 80
    True
    """
    raw = get_data("weigh.hardware", "devices.json")
    assert raw is not None, "the loader of this package cannot read data"
    catalogue = json.loads(raw)
    return tuple(_device(row, catalogue["sources"]) for row in catalogue["devices"])


def _device(row: dict[str, Any], addresses: Mapping[str, Mapping[str, str]]) -> Device:
    def value(key: str) -> Any:
        return row[key]["value"] if key in row else None

    capability = value("compute_capability")
    return Device(
        name=row["name"],
        marketing_name=row["marketing_name"],
        maker=row["maker"],
        generation=row["generation"],
        aliases=tuple(row["aliases"]),
        memory_bytes=row["memory_bytes"]["value"],
        memory_is_label=row.get("memory_is") == "label",
        reserved_bytes=value("reserved_bytes"),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        bandwidth_bytes_per_second=value("bandwidth_bytes_per_second"),
        power_watts=value("power_watts"),
        links={link: figure["value"] for link, figure in row["links"].items()},
        flops={dtype: figure["value"] for dtype, figure in row["flops"].items()},
        _row=row,
        _addresses=addresses,
    )


def _figures(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, figure in row.items():
        if key in ("flops", "links"):
            yield from ((f"{key}.{name}", speed) for name, speed in figure.items())
        elif isinstance(figure, dict):
            yield key, figure


@cache
def _index() -> dict[str, tuple[Device, ...]]:
    index: dict[str, tuple[Device, ...]] = {}
    for device in all_devices():
        for key in dict.fromkeys(map(_key, (device.name, device.marketing_name, *device.aliases))):
            index[key] = (*index.get(key, ()), device)
    return index


_MAKERS = ("nvidia", "amd", "intel", "apple", "google", "huawei", "aws")


def _key(name: str) -> str:
    """A name without case, spaces, and makers and brands that add nothing."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    return "-".join(word for word in words if word not in (*_MAKERS, "geforce", "tesla", "instinct", "radeon"))
