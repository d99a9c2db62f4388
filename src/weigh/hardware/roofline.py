"""The roofline: an operation takes as long as its arithmetic or its bytes, whichever takes longer.

Peak figures come from the catalogue; what programs reach of them is an `Efficiency`, which says where it comes from.
All here is arithmetic over one device and its links: which operations run is `weigh.recipes.work`'s affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.errors import NotModelledError
from weigh.records import dataclass

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.hardware.devices import Device


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a program reaches of a device's peaks, and what a step costs besides.

    The defaults are the roofline itself: no program is faster.
    """

    bandwidth: float = 1.0
    """Share of the peak bandwidth."""
    compute: float = 1.0
    """Share of the peak arithmetic."""
    per_kernel: float = 0.0
    """Seconds that each kernel costs besides, whatever its size: to start, and to wait for the one before."""
    per_message: float = 0.0
    """Seconds that a sum over ranks takes besides, for each rank but one: messages of a ring follow one another."""
    low: float = 1.0
    """Measured speed over predicted, of one measured case in ten at the slow end."""
    high: float = 1.0
    """The same at the fast end."""
    source: str = "the device's peaks: no program is faster"
    """Where it comes from."""


PEAK = Efficiency()
"""The roofline without any efficiency."""


def rate(device: Device, dtype: str | DType) -> tuple[int, str]:
    """Dense operations per second for matrix products in a format, and the format whose figure that is.

    A card without a figure for bf16 has the one for fp16 (or the other way round), since matrix units multiply both at
    one rate; without either, products run at fp32's rate at least (GPUs without matrix units: Pascal, Apple's). A card
    with both may sum fp16's in fp16: GeForce cards do that at twice the rate.

    >>> from weigh.hardware import get_device
    >>> rate(get_device("rtx-2080-ti"), "bf16"), rate(get_device("gtx-1080"), "bf16")
    ((107600000000000, 'fp16'), (9780000000000, 'fp32'))

    Raises:
        NotModelledError: no figure of the device has a source.
    """
    name = (dtypes.get(dtype) if isinstance(dtype, str) else dtype).name
    alike = {"bf16": ("fp16", "fp32"), "fp16": ("bf16", "fp32"), "tf32": ("fp32",)}
    for candidate in (name, *alike.get(name, ())):
        if candidate in device.flops:
            return device.flops[candidate], candidate
    return device.peak_flops(name), name


def bandwidth(device: Device) -> int:
    """Peak bytes per second of the device's memory.

    Raises:
        NotModelledError: the catalogue has no figure with a source.
    """
    if device.bandwidth_bytes_per_second is None:
        raise NotModelledError(f"the bandwidth of {device.marketing_name}", hint="No source states it.")
    return device.bandwidth_bytes_per_second


def seconds(flops: float, num_bytes: float, device: Device, dtype: str | DType, reached: Efficiency = PEAK) -> float:
    """How long one operation takes at least.

    >>> from weigh.hardware import get_device
    >>> round(seconds(2 * 8e9, 16e9, get_device("h100"), "bf16") * 1e3, 2)  # a token of 8 B parameters: bytes
    4.78
    """
    return max(flops / (rate(device, dtype)[0] * reached.compute), num_bytes / (bandwidth(device) * reached.bandwidth))


def balance(device: Device, dtype: str | DType) -> float:
    """Operations for each byte loaded at which arithmetic and memory are both busy.

    >>> from weigh.hardware import get_device
    >>> round(balance(get_device("a100-80gb"), "bf16"))
    156
    """
    return rate(device, dtype)[0] / bandwidth(device)


def all_reduce_seconds(num_bytes: float, ranks: int, device: Device) -> float:
    """A ring all-reduce over the device's fastest link, without the times that its messages take to start.

    Every rank sends and receives 2 (n - 1) / n of the data (Patarasu and Yuan 2009, as NCCL's rings do).

    Raises:
        NotModelledError: no link of the device has a source.
    """
    if ranks == 1:
        return 0.0
    if not device.links:
        raise NotModelledError(f"the links of {device.marketing_name}", hint="No source states how fast they are.")
    return 2 * (ranks - 1) / ranks * num_bytes / max(device.links.values())
