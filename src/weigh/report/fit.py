"""Does it fit? The peak beside what a device has, and what else wants room there.

A run's peak is what the framework allocates, the matrix library's workspaces among it. Outside of it are the driver's
context with the kernels' code and the gaps that the allocator leaves; their ranges are stated with their sources, and
where the answer depends on them, the run goes through the allocator with the least and the most room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.records import dataclass
from weigh.report.assumption import ASSUMED, MODELLED, Assumption
from weigh.report.text import Style
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.hardware import Device
    from weigh.trace.replay import Replay

_MIB = 1 << 20
CONTEXT = (300 * _MIB, 1000 * _MIB)
LIBRARY = (0, 32 * _MIB)
FRAGMENTATION_PERCENT = 20

OUTSIDE = (
    Assumption(
        "the CUDA context takes 300 to 1000 MiB",
        "PyTorch's maintainers give about 300 MB since kernels are loaded lazily (CUDA 11.7) and over 1000 MB before "
        "(https://github.com/pytorch/pytorch/issues/107667)",
        "part of the room that must be left on a device, not of the peak",
    ),
    Assumption(
        "cublasLt takes 0 to 32 MiB",
        "PyTorch gives it a workspace of its own where a product has a bias, as large as cuBLAS's or smaller, "
        "depending on the version (aten/src/ATen/cuda/CublasHandlePool.cpp)",
        "part of the room that must be left; cuBLAS's workspaces are in the peak",
    ),
    Assumption(
        f"gaps in the allocator take 0 to {FRAGMENTATION_PERCENT} % of the peak",
        "PyTorch's caching allocator reserved up to 18 % more than was allocated in 9 of 10 recorded training steps "
        "above 4 GiB when their events were replayed (40 % at worst); expandable segments leave less",
        "part of the room that must be left",
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A peak on a device."""

    device: Device
    """Which device."""
    peak: int
    """Bytes that the run allocates at most."""
    replays: tuple[Replay, Replay] | None = None
    """The run through the allocator with as much room as the least, and as little as the most beside it leaves; None
    where the answer does not depend on it."""

    @property
    def capacity(self) -> int:
        """The bytes that programs can have."""
        return self.device.memory_bytes - (self.device.reserved_bytes or 0)

    @property
    def beside(self) -> tuple[int, int]:
        """The least and the most that is needed outside of the allocator."""
        return CONTEXT[0] + LIBRARY[0], CONTEXT[1] + LIBRARY[1]

    @property
    def outside(self) -> tuple[int, int]:
        """The least and the most that is needed beside the peak, gaps in the allocator among it."""
        least, most = self.beside
        if self.replays is None:
            return least, most + self.peak * FRAGMENTATION_PERCENT // 100
        gaps = [max(r.reserved - self.peak, 0) for r in self.replays if r.out_of_memory is None]
        return least + min(gaps, default=0), most + max(gaps, default=0)

    @property
    def verdict(self) -> str:
        """One of "yes", "no", and "close" where it depends on what is outside of the peak."""
        if self.replays is not None:
            roomy, tight = (r.out_of_memory is None for r in self.replays)
            return "yes" if tight else "close" if roomy else "no"
        least, most = self.outside
        if self.peak + most <= self.capacity:
            return "yes"
        return "close" if self.peak + least <= self.capacity else "no"

    @property
    def spare(self) -> int:
        """Bytes left beside the peak; negative where they lack."""
        return self.capacity - self.peak

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        least, most = self.outside
        return {
            "name": self.device.name,
            "marketing_name": self.device.marketing_name,
            "memory_bytes": self.device.memory_bytes,
            "usable_bytes": self.capacity,
            "verdict": self.verdict,
            "spare_bytes": self.spare,
            "outside_bytes": {"least": least, "most": most, "basis": ASSUMED},
            "basis": MODELLED,
        }

    def _replayed(self) -> str:
        """What the allocator said, at the least and the most that lies outside of it."""
        assert self.replays is not None
        said = []
        for replayed, beside in zip(self.replays, self.beside, strict=True):
            room = f"with {format_bytes(beside)} for context and libraries"
            if replayed.out_of_memory is not None:
                refused = replayed.out_of_memory
                a = refused.allocation
                said.append(
                    f"{room} it runs out of memory in the {refused.mark.phase} phase, when {a.op} of "
                    f"{a.path or 'the loop'} asks for {format_bytes(int(a.num_bytes))}"  # type: ignore[arg-type]
                )
            else:
                flushes = f", giving cached memory back {replayed.retries} times" if replayed.retries else ""
                said.append(f"{room} it runs, reserving {format_bytes(replayed.reserved)}{flushes}")
        return "; ".join(dict.fromkeys(said))

    def text(self, style: Style) -> str:
        """One line: whether, and by how much."""
        least, most = self.outside
        answer = {"yes": "Fits", "close": "May fit", "no": "Does not fit"}[self.verdict]
        painted = style.good(answer, {"yes": True, "close": None, "no": False}[self.verdict])
        if self.replays is not None:
            return f"{painted} on {self.device.marketing_name}: {self._replayed()}"
        room = f"{format_bytes(self.spare)} to spare" if self.spare >= 0 else f"{format_bytes(-self.spare)} too much"
        return (
            f"{painted} on {self.device.marketing_name}: {room} of {format_bytes(self.capacity)}; "
            f"context, libraries and gaps want {format_bytes(least)} to {format_bytes(most)} beside it"
        )
